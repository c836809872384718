"""The version of the package, for what is written and shown."""

__all__ = ["__version__"]

__version__ = "0.1.0"
