"""Files made once on a machine: what compilers make of the same input is the same."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def kept(parts: Iterable[str], make: Callable[[Path], object]) -> Path:
    """Return the file that ``make`` writes from ``parts``; it is made where it is not yet there.

    In a folder that nobody else can write to, since what lies there is loaded. Files appear under
    their names finished: several processes may make the same one.
    """
    folder = Path(tempfile.gettempdir()) / f"gpu_als_tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    file = folder / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            make(Path(unfinished, "file"))
            Path(unfinished, "file").replace(file)
    return file
