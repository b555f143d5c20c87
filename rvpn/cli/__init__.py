"""
The command `rvpn`: key files, certificates, policy check, status and reload of running services, the lab.

`main` reads the arguments and calls the subcommand's `run(options) -> exit code`, which each subcommand's
module registers. Mistakes of the user end in one line on standard error: exit code 2 for wrong arguments and
1 for all others.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from rvpn import __version__
from rvpn.arguments import Parser
from rvpn.cli import enroll, keys, pki, policy, service
from rvpn.cli.subcommand import complain
from rvpn.errors import LocalError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rvpn` with `arguments` (None: the process's own) and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(arguments).parse_args(arguments)
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough. Python flushes once more at exit, and must not fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (LocalError, OSError) as error:
        complain(error)
        return 1
    return code


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="rvpn",
        description="The VPN that survives the death of its gateways.",
        epilog="To start the services: twistd rvpn-client --help, twistd rvpn-gateway --help.",
    )
    parser.add_argument("--version", action="version", version=f"rvpn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (keys, pki, enroll, policy, service):
        module.register(commands)
    if not arguments or arguments[0] not in commands.choices:
        # Only now: the lab brings pyroute2 along, which costs every other command time and memory.
        from rvpn.lab import command as lab

        lab.register(commands)
    return parser
