"""
New files for their owner alone: complete or not there at all, and nothing overwritten without being asked.

Each file is written under a temporary name beside its place (mode 0600, fsync), and gets its own name only
when all of them are written: by a link, which fails if there is such a file, or by a rename that replaces it.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from rvpn.errors import LocalError


def refuse_existing(paths: Iterable[Path], instead: str = "choose another name") -> None:
    """
    Raise `LocalError` if one of these files exists: before anybody is asked for anything.

    `instead` is what to do about it.
    """
    for path in paths:
        if path.exists() or path.is_symlink():
            raise _exists(path, instead)


def write(files: Mapping[Path, bytes], overwrite: bool = False) -> None:
    """
    Make all of `files`, or none of them.

    Raises `LocalError` if one exists, unless `overwrite` allows to replace it, or cannot be written.
    """
    pending: dict[Path, Path] = {}
    try:
        if not overwrite:
            refuse_existing(files)
        for path, data in files.items():
            pending[path] = _written(path, data)
        _place(pending, overwrite)
    finally:
        for temporary in pending.values():
            temporary.unlink(missing_ok=True)


def _written(path: Path, data: bytes) -> Path:
    """Return the temporary file that holds `data`; mkstemp makes it with mode 0600, whatever the umask."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise LocalError(f"{path}: cannot create this file: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise LocalError(f"{path}: cannot write this file: {error.strerror}") from None
    return Path(name)


def _place(pending: Mapping[Path, Path], overwrite: bool) -> None:
    made: list[Path] = []
    try:
        for path, temporary in pending.items():
            if overwrite:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)
                made.append(path)
    except OSError as error:
        for other in made:
            with suppress(OSError):
                other.unlink()
        if isinstance(error, FileExistsError):
            raise _exists(path) from None
        raise LocalError(f"{path}: cannot create this file: {error.strerror}") from None


def _exists(path: Path, instead: str = "choose another name") -> LocalError:
    return LocalError(f"{path}: exists already and is left as it is; {instead}")
