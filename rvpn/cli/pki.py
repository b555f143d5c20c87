"""
`rvpn pki`: a certificate authority in a directory.

The modules that work on certificates are imported by what needs them: no other command waits for them.
"""

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from rvpn.arguments import whole_number
from rvpn.cli import passphrase
from rvpn.cli.report import aligned, counted
from rvpn.cli.subcommand import Subparsers
from rvpn.constants import AUTHORITY_LIFETIME, NODE_LIFETIME, Role
from rvpn.errors import LocalError

if TYPE_CHECKING:
    from rvpn.pki.authority import Request
    from rvpn.pki.index import Entry

DIRECTORY = Path("pki")
#: Days, as long as anything that is made today can be trusted to be of use.
MOST_DAYS = 36500
#: Bytes; a file of a certificate is shorter.
LONGEST_FILE = 1 << 20


def register(commands: Subparsers) -> None:
    """Add `pki` with its subcommands."""
    pki = commands.add_parser(
        "pki",
        help="a small certificate authority",
        description="Issue, renew, revoke and list the certificates of gateways and clients. All that the "
        "authority is lies in one directory, whose ca.key is encrypted with a passphrase: it belongs on an "
        "administrator's machine, not on a gateway.",
        epilog="docs/certificates.md begins with nothing and ends with three gateways and a client.",
    )
    subcommands = pki.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_init(subcommands)
    _add_issue(subcommands, Role.GATEWAY, "outer addresses and DNS names by which clients reach the gateway")
    _add_issue(subcommands, Role.CLIENT, "inner addresses of the client, the same at every gateway")
    _add_revoke(subcommands)
    _add_show(subcommands)


def _add_init(subcommands: Subparsers) -> None:
    init = subcommands.add_parser(
        "init",
        help="make an authority",
        description="Make a new authority: its certificate ca.pem, its secret key ca.key, encrypted with a "
        "passphrase, an empty revocation list crl.pem, and index.csv, which lists what it issues.",
    )
    add_place(init)
    add_kind(init)
    _add_days(init, AUTHORITY_LIFETIME)
    init.add_argument(
        "--name",
        type=_name,
        help="the name in its certificate (default: rvpn-ca, the day and six random digits)",
    )
    init.set_defaults(run=_init)


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("found '', expected a name")
    return text


def _add_issue(subcommands: Subparsers, role: Role, alternatives: str) -> None:
    parser = subcommands.add_parser(
        role.value,
        help=f"issue the certificate of a {role.value}",
        description=f"Make a secret key and a certificate for a {role.value}, and tell the lines of its "
        "policy that name them. The key is in NAME.key alone: the authority keeps no copy.",
    )
    parser.add_argument("name", metavar="NAME", help=f"what the {role.value} is called, in files and in logs")
    parser.add_argument("alternatives", metavar="ADDRESS", nargs="*", help=alternatives)
    add_place(parser)
    add_request(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where NAME.pem and NAME.key go (default: here)",
    )
    parser.set_defaults(run=_issue, role=role)


def _add_revoke(subcommands: Subparsers) -> None:
    revoke = subcommands.add_parser(
        "revoke",
        help="revoke all certificates of a gateway or client",
        description="Revoke all valid certificates of each NAME, and write the revocation list crl.pem "
        "anew, which then has to be copied to the gateways (for a revoked gateway, to the clients too). "
        "Without a NAME the list is only written anew.",
    )
    revoke.add_argument("names", metavar="NAME", nargs="*", help="a gateway or client")
    add_place(revoke)
    revoke.set_defaults(run=_revoke)


def _add_show(subcommands: Subparsers) -> None:
    show = subcommands.add_parser(
        "show",
        help="list what was issued, or tell what is in a certificate",
        description="List every certificate of the authority: role, name, addresses, expiry, whether it is "
        "valid, serial number. With FILE tell what is in that certificate, whoever issued it.",
    )
    show.add_argument("file", metavar="FILE", type=Path, nargs="?", help="a certificate in PEM")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.add_argument(
        "--ca", type=Path, default=DIRECTORY, metavar="DIR", help="the authority (default: pki)"
    )
    show.set_defaults(run=_show)


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which authority, and with which passphrase."""
    parser.add_argument(
        "--ca", type=Path, default=DIRECTORY, metavar="DIR", help="the authority's directory (default: pki)"
    )
    passphrase.add_argument(parser)


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a certificate is to be."""
    add_kind(parser)
    _add_days(parser, NODE_LIFETIME)
    parser.add_argument(
        "--renew",
        action="store_true",
        help="make another certificate, with a new key, for a name that has one, and replace the files; "
        "without an ADDRESS it is for the same ones",
    )


def add_kind(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which kind of key to make."""
    parser.add_argument(
        "--key", choices=("ed25519", "p256"), default="ed25519", help="kind of key (default: ed25519)"
    )


def _add_days(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--days",
        type=whole_number(1, MOST_DAYS),
        default=default,
        help=f"how long the certificate is valid (default: {default})",
    )


def now() -> datetime:
    """Return the time as certificates write it: in UTC and whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def request(options: argparse.Namespace, role: Role) -> "Request":
    """Return what the options ask of the authority."""
    from rvpn.pki.authority import Request
    from rvpn.pki.keys import KeyKind

    kind = KeyKind(options.key)
    return Request(role, options.name, tuple(options.alternatives), options.days, kind, options.renew)


def _init(options: argparse.Namespace) -> int:
    from rvpn.pki import authority
    from rvpn.pki.keys import KeyKind

    directory, moment = options.ca, now()
    authority.refuse_existing(directory)
    # Clients are told apart by their name and that of their authority: two of one day need two names.
    name = options.name or f"rvpn-ca-{moment:%Y-%m-%d}-{token_hex(3)}"
    secret = passphrase.get(options.passphrase_file, directory, new=True)
    authority.create(directory, name, secret, moment, options.days, KeyKind(options.key))
    print(
        f"""\
{name}: an authority in {directory}, valid for {counted(options.days, "day")}
    {directory}/ca.pem     its certificate: every gateway and client needs it
    {directory}/crl.pem    what it revoked, nothing yet: every gateway and client needs it
    {directory}/ca.key     its secret key, of no use without the passphrase; keep a copy of both elsewhere
Next: rvpn pki gateway NAME ADDRESS, rvpn pki client NAME ADDRESS, or rvpn enroll"""
    )
    return 0


def _issue(options: argparse.Namespace) -> int:
    from rvpn.files import newfile
    from rvpn.pki.authority import Authority

    certificate, key = (options.out / f"{options.name}.{ending}" for ending in ("pem", "key"))
    with Authority(options.ca) as authority:
        wanted = authority.check(request(options, options.role), now())
        newfile.refuse_existing(
            [] if options.renew else [certificate, key], "remove it, or choose another --out"
        )
        secret = passphrase.get(options.passphrase_file, options.ca)
        with authority.issuing(wanted, secret, now()) as issued:
            newfile.write({key: issued.key, certificate: issued.certificate}, overwrite=options.renew)
    print(_told(options.role, issued.entry, certificate, key, options.ca))
    return 0


def _told(role: Role, entry: "Entry", certificate: Path, key: Path, directory: Path) -> str:
    """Say what was made, and which lines of the policy name it."""
    authority = "Authority1 = ca.pem"
    if role is Role.GATEWAY:
        authority += " 10.99.0.0/24      ; instead of this network: those of your clients' inner addresses"
    sections = {
        "GENERAL": ["Mechanism = tls"],
        "IDENTITY": [f"Certificate = {certificate.name}", f"CertificateKey = {key.name}"],
        "AUTHORITIES": [authority, "Revoked = crl.pem"],
    }
    alternatives = " ".join(entry.alternatives)
    if role is Role.CLIENT:
        sections["DEVICE"] = [f"InnerAddress = {alternatives}"]
    policy = "\n\n".join("\n".join((f"[{title}]", *lines)) for title, lines in sections.items())
    return f"""\
{role.value} {entry.name}: certificate for {alternatives}, valid until {entry.expires:%Y-%m-%d}
Copy these files to the {role.value}, beside its policy, and then delete {key} here:
    {certificate} {key} {directory}/ca.pem {directory}/crl.pem
These lines go into its policy:

{policy}{_told_to_clients(role, entry)}"""


def _told_to_clients(role: Role, entry: "Entry") -> str:
    """Say what clients need of a gateway that they do not find by its address, which is what they expect."""
    from rvpn.keyexchange.certificates import is_address

    if role is Role.CLIENT or any(map(is_address, entry.alternatives)):
        return ""
    return f"""

No address stands in the certificate. So these lines go into the policies of its clients:

[PEERS]
192.0.2.1 = tls {entry.alternatives[0]}      ; instead of this address: that of the gateway"""


def _revoke(options: argparse.Namespace) -> int:
    from rvpn.pki.authority import Authority

    with Authority(options.ca) as authority:
        serials = authority.to_revoke(options.names, now())
        secret = passphrase.get(options.passphrase_file, options.ca)
        authority.revoke(serials, secret, now())
    done = f"revoked {counted(len(serials), 'certificate')}" if serials else "wrote the list anew"
    print(f"{done}; copy {options.ca}/crl.pem to the gateways, for a revoked gateway to clients too")
    return 0


def _show(options: argparse.Namespace) -> int:
    from rvpn.pki import certificates, description

    if options.file:
        shown = description.of_certificate(certificates.load(_content(options.file), options.file), now())
        print(json.dumps(shown) if options.json else "\n".join(description.lines(shown)))
        return 0
    from rvpn.pki.authority import Authority

    with Authority(options.ca) as authority:
        shown = {
            "authority": description.of_certificate(authority.certificate, now()),
            "revocations": description.of_revocations(authority.revocations),
            "certificates": [
                description.of_entry(entry, now(), authority.unlisted) for entry in authority.entries
            ],
        }
    print(json.dumps(shown) if options.json else _listed(shown, options.ca))
    return 0


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(LONGEST_FILE)
    except OSError as error:
        raise LocalError(f"{file}: cannot read this certificate: {error.strerror}") from None


def _listed(shown: dict[str, Any], directory: Path) -> str:
    """Return the list for people."""
    own, revocations = shown["authority"], shown["revocations"]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "ROLE": lambda entry: entry["role"],
        "NAME": lambda entry: entry["name"],
        "ADDRESSES": lambda entry: " ".join(entry["alternatives"]),
        "EXPIRES": lambda entry: entry["expires"][:10],
        "STATE": lambda entry: entry["state"],
        "SERIAL": lambda entry: entry["serial"],
    }
    rows = [[cell(entry) for cell in columns.values()] for entry in shown["certificates"]]
    return "\n".join(
        [
            f"{directory}: {own['name']}, {own['key']}, until {own['expires'][:10]}, {own['state']}",
            f"revocation list of {revocations['issued'][:10]}, holds until {revocations['next'][:10]}",
            *(aligned([[*columns], *rows]) if rows else ["nothing issued yet"]),
        ]
    )
