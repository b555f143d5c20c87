"""
Secret key files: `keygen` makes them, the services and `policy check` read them.

A file holds 32 bytes in base64 on one line: a Curve25519 private key (RFC 7748) or a preshared key, which
differ in use, not in form. It is created for its owner alone and is refused when anybody else could have read
it: a key that leaked is to be replaced, not used.
"""

import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from pathlib import Path
from stat import S_IMODE

from nacl.public import PrivateKey

from rvpn.errors import LocalError
from rvpn.files import newfile
from rvpn.files.regular import IrregularFile, mode_of, open_regular, open_to_others

KEY_LENGTH = 32
#: A key line is 45 bytes; whatever is longer than this is no key file.
LONGEST_FILE = 256


def beside(policy: str, name: str) -> str:
    """Return the path of a file that a policy file names: relative to the directory of the policy."""
    return str(Path(policy).parent / name)


def create(path: str) -> str:
    """
    Make a private key, store it in a new file and return the public key as base64.

    Raises `LocalError` if the file exists or cannot be written; an existing file is never touched.
    """
    private = PrivateKey.generate()
    _write(path, bytes(private))
    return b64encode(bytes(private.public_key)).decode()


def create_preshared(path: str) -> None:
    """Make a preshared key and store it in a new file. Raises `LocalError` as `create` does."""
    _write(path, os.urandom(KEY_LENGTH))


def public_key(path: str) -> str:
    """Return the base64 public key of the private key in `path`. Raises `LocalError` as `load` does."""
    return b64encode(bytes(PrivateKey(load(path)).public_key)).decode()


def load(path: str) -> bytes:
    """
    Return the 32 secret bytes in `path`.

    Raises `LocalError` with path, what was found, what was expected and what to do; never quotes the content.
    """
    return _decode(path, read(path, LONGEST_FILE, f"rvpn keygen {path}"))


def read(path: str, longest: int, maker: str) -> bytes:
    """
    Return what is in a file that nobody else may read: at most `longest` bytes, one more if there are more.

    Raises `LocalError` as `load` does; `maker` is the command that makes such a file.
    """
    try:
        with open_regular(path) as file:
            _refuse_exposed(path, mode_of(file))
            return file.read(longest + 1)
    except IrregularFile as error:
        raise LocalError(f"{path}: {error}, expected a key file") from None
    except FileNotFoundError:
        raise LocalError(f"{path}: no such key file; make one with: {maker}") from None
    except OSError as error:
        raise LocalError(f"{path}: cannot read this key file: {error.strerror}") from None


def _write(path: str, secret: bytes) -> None:
    newfile.write({Path(path): b64encode(secret) + b"\n"})


def _refuse_exposed(path: str, mode: int) -> None:
    if open_to_others(mode):
        raise LocalError(
            f"{path}: found mode {S_IMODE(mode):04o}, expected 0600: others may have read this key; make a "
            f"new one, or, if nobody else uses this machine: chmod 600 {path}"
        )


def _decode(path: str, text: bytes) -> bytes:
    try:
        secret = b64decode(text.strip(), validate=True) if len(text) <= LONGEST_FILE else b""
    except (Base64Error, ValueError):
        raise LocalError(
            f"{path}: found no base64, expected a key of {KEY_LENGTH} bytes as base64 on one line"
        ) from None
    if len(secret) != KEY_LENGTH:
        found = f"{len(secret)} bytes" if secret else "an empty or overlong file"
        raise LocalError(f"{path}: found {found}, expected a key of {KEY_LENGTH} bytes as base64 on one line")
    return secret
