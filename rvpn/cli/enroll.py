"""
`rvpn enroll`: one file for a new client.

What works on certificates is imported when it is needed, as in `rvpn.cli.pki`.
"""

import argparse
from ipaddress import ip_address
from pathlib import Path

from rvpn.cli import passphrase, pki
from rvpn.cli.subcommand import Subparsers
from rvpn.constants import Role
from rvpn.files import newfile, policyfile

#: What all clients have in common, in the authority's directory.
TEMPLATE = "client.policy"


def register(commands: Subparsers) -> None:
    """Add the command."""
    enroll = commands.add_parser(
        "enroll",
        help="make one file with all that a new client needs",
        description="Issue the certificate of a new client, and write one file with its policy, secret key, "
        "certificate and authority, ready for twistd rvpn-client --policy NAME.rvpn. What all clients have "
        "in common, where the gateways are and what lies behind them, comes from a policy without identity.",
        epilog="The secret key is in that file alone: the authority keeps no copy.",
    )
    enroll.add_argument("name", metavar="NAME", help="what the client is called, in files and in logs")
    enroll.add_argument(
        "alternatives",
        metavar="ADDRESS",
        nargs="*",
        help="inner addresses of the client, the same at every gateway",
    )
    pki.add_place(enroll)
    pki.add_request(enroll)
    enroll.add_argument(
        "--template",
        type=Path,
        metavar="FILE",
        help=f"the policy that all clients have in common (default: {TEMPLATE} in the authority's directory)",
    )
    enroll.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the file to make (default: NAME.rvpn)"
    )
    enroll.set_defaults(run=_enroll)


def _enroll(options: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives.serialization import Encoding

    from rvpn.pki.authority import Authority
    from rvpn.pki.enrolment import Enrolment, Template

    file = options.output or Path(f"{options.name}.rvpn")
    source = options.template or options.ca / TEMPLATE
    with Authority(options.ca) as authority:
        wanted = authority.check(pki.request(options, Role.CLIENT), pki.now())
        addresses = tuple(map(ip_address, wanted.alternatives))
        template = Template(policyfile.read(source), str(source))
        newfile.refuse_existing([] if options.renew else [file], "remove it, or choose another with -o")
        revocations = authority.revocations.public_bytes(Encoding.PEM)
        secret = passphrase.get(options.passphrase_file, options.ca)
        with authority.issuing(wanted, secret, pki.now()) as issued:
            enrolment = Enrolment(
                wanted.name,
                addresses,
                issued.entry.expires,
                issued.certificate.decode(),
                issued.key.decode(),
                authority.certificate_pem.decode(),
                revocations.decode(),
            )
            newfile.write({file: template.policy(enrolment).encode()}, overwrite=options.renew)
    print(
        f"""\
{file}: the policy of client {wanted.name}, with its secret key, valid until {enrolment.expires:%Y-%m-%d}
Move it to the client on a way that nobody else can read, and start the client there with:
    twistd rvpn-client --policy {file.name}"""
    )
    return 0
