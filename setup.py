"""The compiled library of the CPU; all else about the package is in pyproject.toml.

They are plain shared libraries that ctypes loads: a wheel serves every version of Python. Where no
compiler is at hand, or it cannot build one, the package installs without them.
"""

import copy
import platform
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = "gpu_als/backends/native/"
FLAGS = ["-O3", "-g0", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-pthread"]
X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 1 << 32
VARIANTS = {"generic": []}
if X86:
    VARIANTS |= {level: [f"-march=x86-64-{level}"] for level in ("v3", "v4")}


class BuildLibraries(build_ext):
    """Names without the version of Python, and no function that Python would look for."""

    def finalize_options(self):
        """Compile the variants side by side."""
        super().finalize_options()
        self.parallel = True

    def build_extension(self, extension):
        """Keep the objects of the variants apart: they come from the same sources."""
        own = copy.copy(self)
        own.build_temp = f"{self.build_temp}/{extension.name}"
        build_ext.build_extension(own, extension)

    def get_ext_filename(self, name):
        """Return the path of a library."""
        return name.replace(".", "/") + ".so"

    def get_export_symbols(self, extension):
        """Return none but those that the source exports."""
        return []


class PlatformWheel(bdist_wheel):
    """For every Python 3 on one platform."""

    def get_tag(self):
        """Return the tags of the wheel."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            f"gpu_als.backends.native.rows_{variant}",
            [SOURCES + name for name in ("rows.cpp", "sides.cpp", "systems.cpp", "top_k.cpp")],
            depends=[SOURCES + name for name in ("dense.h", "lanes.h", "threads.h")],
            extra_compile_args=FLAGS + flags,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
        for variant, flags in VARIANTS.items()
    ],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlatformWheel},
)
