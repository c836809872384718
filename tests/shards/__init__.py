"""Data in shards on disk: the format, conversions to it, and what survives a kill."""
