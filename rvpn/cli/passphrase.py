"""
Passphrases: asked for on the terminal, or read from a file or descriptor.

Neither the command line nor the environment holds one, for other processes can read these.
"""

import argparse
import getpass
import os
import stat
from pathlib import Path

from rvpn.errors import LocalError
from rvpn.files.regular import mode_of, open_to_others

#: Characters. A new passphrase that is shorter is guessed too soon.
SHORTEST = 8
#: Bytes; a longer one is no passphrase, but a wrong file.
LONGEST = 1024


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the passphrase comes from."""
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="the first line of FILE is the passphrase of the authority's key (default: ask on the "
        "terminal); /dev/fd/N is what this command has open as descriptor N",
    )


def get(file: Path | None, directory: Path, new: bool = False) -> bytes:
    """
    Return the passphrase of the authority in `directory`, asking twice for a new one.

    Raises `LocalError` if there is none to be had, or a new one is too short.
    """
    text = _read(file) if file else _ask(directory, new)
    if new and len(text) < SHORTEST:
        raise LocalError(f"found a passphrase of {len(text)} characters, expected at least {SHORTEST}")
    return text.encode()


def _ask(directory: Path, new: bool) -> str:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise LocalError(
            "there is no terminal to ask for the passphrase on; --passphrase-file names a file"
        ) from None
    try:
        text = getpass.getpass(f"{'New passphrase' if new else 'Passphrase'} of {directory}: ")
        if new and getpass.getpass("The same again: ") != text:
            raise LocalError("the two passphrases differ; nothing was made")
    except EOFError:
        raise LocalError("no passphrase was given") from None
    return text


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            mode = mode_of(opened)
            if stat.S_ISREG(mode) and open_to_others(mode):
                raise LocalError(f"{file}: others can read this passphrase: chmod 600 {file}")
            line = opened.readline(LONGEST + 1).rstrip(b"\r\n")
        text = line.decode()
    except OSError as error:
        raise LocalError(f"{file}: cannot read this passphrase: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LocalError(f"{file}: found no UTF-8 text, expected a passphrase on its first line") from None
    if not text or len(line) > LONGEST:
        raise LocalError(f"{file}: found an empty or overlong line, expected a passphrase")
    return text
