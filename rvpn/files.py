"""
Files as they are found on disk: what keys, certificates and policies are read with.

A name that somebody wrote into a policy may lead to a FIFO or a device. Nobody waits for what such a one may
bring, or for the end of what has none: it is refused.
"""

import os
import stat
from typing import BinaryIO

from rvpn.errors import LocalError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class IrregularFile(LocalError):
    """A name leads to something that is not a regular file; the text says so, but not where that is."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading. Raises `OSError`, and `IrregularFile`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IrregularFile("found something that is not a regular file")
    return os.fdopen(descriptor, "rb")


def mode_of(file: BinaryIO) -> int:
    """Return the mode of an open file, as `stat` has it."""
    return os.fstat(file.fileno()).st_mode


def open_to_others(mode: int) -> bool:
    """Tell whether anybody but the owner may do anything with a file of this mode."""
    return bool(mode & _OTHERS)
