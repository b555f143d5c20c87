"""`rvpn keygen` and `rvpn pubkey`: make a key file, tell the public key of one."""

import argparse

from rvpn.cli.subcommand import Subparsers
from rvpn.files import keyfile


def register(commands: Subparsers) -> None:
    """Add both commands."""
    keygen = commands.add_parser(
        "keygen",
        help="make a key file",
        description="Make a private key, store it in FILE (mode 0600, never overwriting anything) "
        "and print the public key, which the peers' policies need.",
    )
    keygen.add_argument("file", metavar="FILE", help="the key file to make")
    keygen.add_argument(
        "--preshared",
        action="store_true",
        help="make a preshared key instead: the same file for both ends, and nothing to print",
    )
    keygen.set_defaults(run=_keygen)
    pubkey = commands.add_parser(
        "pubkey",
        help="print the public key of a key file",
        description="Print the public key that belongs to the private key in FILE.",
    )
    pubkey.add_argument("file", metavar="FILE", help="a key file that rvpn keygen made")
    pubkey.set_defaults(run=_pubkey)


def _keygen(options: argparse.Namespace) -> int:
    if options.preshared:
        keyfile.create_preshared(options.file)
    else:
        print(keyfile.create(options.file))
    return 0


def _pubkey(options: argparse.Namespace) -> int:
    print(keyfile.public_key(options.file))
    return 0
