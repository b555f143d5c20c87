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
    file = open(path, "rb", opener=_at_once)  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(mode_of(file)):
        file.close()
        raise IrregularFile("found something that is not a regular file")
    return file


def _at_once(path: str, flags: int) -> int:
    """Open a file so that a FIFO can be refused instead of waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def mode_of(file: BinaryIO) -> int:
    """Return the mode of an open file, as `stat` has it."""
    return os.fstat(file.fileno()).st_mode


def open_to_others(mode: int) -> bool:
    """Tell whether anybody but the owner may do anything with a file of this mode."""
    return bool(mode & _OTHERS)
