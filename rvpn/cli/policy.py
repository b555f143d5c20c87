"""`rvpn policy check`: everything that is wrong with policy files, at once."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from rvpn.cli.report import counted
from rvpn.cli.subcommand import Subparsers
from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.files import keyfile, policyfile
from rvpn.policy import Diagnostic, Policy, PolicyError, Severity, check
from rvpn.policy.grammar import read


def register(commands: Subparsers) -> None:
    """Add `policy` with its one subcommand."""
    policy = commands.add_parser("policy", help="check policy files", description="Work on policy files.")
    subcommands = policy.add_subparsers(title="commands", metavar="COMMAND", required=True)
    checking = subcommands.add_parser(
        "check",
        help="report all errors and doubtful entries of policy files",
        description="Report every error and every doubtful entry of policy files, one line each, as "
        "FILE:LINE: error: ... or FILE:LINE: warning: .... The key and certificate files that they name are "
        "looked at too. The exit code is 1 if there are errors, and 0 if there are none or only warnings.",
    )
    checking.add_argument("files", metavar="FILE", nargs="+", help="a policy file")
    checking.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    diagnostics = [diagnostic for filename in options.files for diagnostic in _diagnose(filename)]
    for diagnostic in diagnostics:
        print(diagnostic)
    errors = sum(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics)
    warnings = len(diagnostics) - errors
    print(
        f"{counted(len(options.files), 'file')}: {counted(errors, 'error')}, {counted(warnings, 'warning')}"
    )
    return 1 if errors else 0


def _diagnose(filename: str) -> list[Diagnostic]:
    """Return what is wrong with a policy file and the key files it names, in the order of the lines."""
    try:
        text = policyfile.read(filename)
    except PolicyError as error:
        return list(error.diagnostics)
    policy, diagnostics = check(text, filename)
    if policy is not None:
        lines = read(text, filename).lines
        diagnostics += _key_faults(policy, filename, lines)
    return sorted(diagnostics, key=lambda diagnostic: diagnostic.line)


def _key_faults(policy: Policy, filename: str, lines: Mapping[str, int]) -> Iterator[Diagnostic]:
    """Yield a warning for each key file that the policy names and the services would refuse."""
    for statement, name in (("PrivateKey", policy.private_key), ("PresharedKey", policy.preshared_key)):
        try:
            if name is not None:
                keyfile.load(keyfile.beside(filename, name))
        except LocalError as error:
            yield Diagnostic(filename, lines[statement], Severity.WARNING, str(error))
    if policy.certificate is not None:
        yield from _certificate_faults(policy, filename, lines)


def _certificate_faults(policy: Policy, filename: str, lines: Mapping[str, int]) -> Iterator[Diagnostic]:
    """Yield an error for each file of certificates that the services refuse, and what they cannot see."""
    # Imported here, so that no other command waits for it.
    from rvpn.files import certificatefiles
    from rvpn.keyexchange.certificates import addresses

    role = Role.CLIENT if policy.tunnels else Role.GATEWAY
    loaded, faults = certificatefiles.inspect(policy, Path(filename).parent, role)
    for fault in faults:
        yield Diagnostic(filename, lines[fault.statement], Severity.ERROR, str(fault))
    for authority in loaded.files.authorities if loaded is not None else ():
        if authority.list_made_at is None:
            text = (
                f"no revocation list of {authority.label}, {authority.name!a}, is in Revoked; each of its "
                "certificates is accepted until it expires, also one that was revoked"
            )
            yield Diagnostic(filename, lines[authority.label], Severity.WARNING, text)
    if loaded is not None and role is Role.CLIENT:
        certified = addresses(loaded.files.certificate)
        for address in policy.inner_addresses or ():
            if address not in certified:
                text = f"InnerAddress {address} is not in the certificate; gateways refuse this client"
                yield Diagnostic(filename, lines["InnerAddress"], Severity.WARNING, text)
