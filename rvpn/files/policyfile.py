"""
Policy files on disk: what the services and the commands read their text with.

A name that leads to a FIFO, a device or something far too long is a fault like any other in a policy. A file
with a secret key in it is kept like a key file.
"""

from pathlib import Path
from stat import S_IMODE

from rvpn.files.regular import IrregularFile, mode_of, open_regular, open_to_others
from rvpn.policy.diagnostics import Diagnostic, PolicyError, Severity

#: Bytes; a policy of a hundred thousand entries is shorter.
LONGEST_FILE = 1 << 24
#: The end of the line with which a secret key begins (RFC 7468).
_SECRET = b" PRIVATE KEY-----"


def read(path: str | Path) -> bytes:
    """Return what is in a policy file. Raises `PolicyError` if it cannot be one."""
    try:
        with open_regular(path) as file:
            mode, text = mode_of(file), file.read(LONGEST_FILE + 1)
    except IrregularFile as error:
        raise _error(path, f"{error}, expected a policy") from None
    except OSError as error:
        raise _error(path, f"cannot read this file: {error.strerror}") from None
    if len(text) > LONGEST_FILE:
        raise _error(path, f"found more than {LONGEST_FILE} bytes, expected a policy")
    if open_to_others(mode) and _SECRET in text:
        found = f"found mode {S_IMODE(mode):04o}, expected 0600"
        raise _error(path, f"{found}: others may have read the secret key in this policy; make a new one")
    return text


def _error(path: str | Path, fault: str) -> PolicyError:
    return PolicyError([Diagnostic(str(path), 1, Severity.ERROR, fault)])
