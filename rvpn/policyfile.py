"""
Policy files on disk: what the services and the commands read their text with.

A name that leads to a FIFO, a device or something far too long is a fault like any other in a policy, so that
nobody waits for the end of what has none. A policy with a secret key in it is kept like a key file.
"""

import os
import stat
from pathlib import Path

from rvpn.policy.diagnostics import Diagnostic, PolicyError, Severity

#: Bytes; a policy of a hundred thousand entries is shorter.
LONGEST_FILE = 1 << 24
#: The end of the line with which a secret key begins (RFC 7468).
_SECRET = b" PRIVATE KEY-----"


def read(path: str | Path) -> bytes:
    """Return what is in a policy file. Raises `PolicyError` if it cannot be one."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise _error(path, "found something that is not a regular file, expected a policy")
            text = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise _error(path, f"cannot read this file: {error.strerror}") from None
    if len(text) > LONGEST_FILE:
        raise _error(path, f"found more than {LONGEST_FILE} bytes, expected a policy")
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and _SECRET in text:
        found = f"found mode {stat.S_IMODE(mode):04o}, expected 0600"
        raise _error(path, f"{found}: others may have read the secret key in this policy; make a new one")
    return text


def _at_once(path: str, flags: int) -> int:
    """Open a file so that a FIFO can be refused instead of waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _error(path: str | Path, fault: str) -> PolicyError:
    return PolicyError([Diagnostic(str(path), 1, Severity.ERROR, fault)])
