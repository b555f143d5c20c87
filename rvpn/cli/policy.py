"""`rvpn policy check`: everything that is wrong with policy files, at once."""

import argparse
from pathlib import Path

from rvpn import keyfile
from rvpn.cli.subcommand import Subparsers
from rvpn.errors import LocalError
from rvpn.policy import Policy, Severity, check


def register(commands: Subparsers) -> None:
    """Add `policy` with its one subcommand."""
    policy = commands.add_parser("policy", help="check policy files", description="Work on policy files.")
    subcommands = policy.add_subparsers(title="commands", metavar="COMMAND", required=True)
    check = subcommands.add_parser(
        "check",
        help="report all errors and doubtful entries of policy files",
        description="Report every error and every doubtful entry of policy files, one line each, as "
        "FILE:LINE: error: ... or FILE:LINE: warning: .... The key files that they name are looked at too. "
        "The exit code is 1 if there are errors, and 0 if there are none or only warnings.",
    )
    check.add_argument("files", metavar="FILE", nargs="+", help="a policy file")
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    errors = warnings = 0
    for filename in options.files:
        try:
            text = Path(filename).read_bytes()
        except OSError as error:
            print(f"{filename}: error: cannot read this policy: {error.strerror}")
            errors += 1
            continue
        policy, diagnostics = check(text, filename)
        complaints = _key_complaints(policy, filename) if policy else []
        for line in [*diagnostics, *complaints]:
            print(line)
        found = sum(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics)
        errors += found
        warnings += len(diagnostics) - found + len(complaints)
    print(f"{_count(len(options.files), 'file')}: {_count(errors, 'error')}, {_count(warnings, 'warning')}")
    return 1 if errors else 0


def _key_complaints(policy: Policy, filename: str) -> list[str]:
    """Return a line for each key file that the policy names and the services would refuse."""
    complaints = []
    for name in (policy.private_key, policy.preshared_key):
        try:
            if name is not None:
                keyfile.load(keyfile.beside(filename, name))
        except LocalError as error:
            complaints.append(f"{filename}: warning: {error}")
    return complaints


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
