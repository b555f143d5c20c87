"""`rvpn status`, `reload`, `drain`, `undrain`: ask the services on this machine by their control sockets."""

import argparse
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rvpn import __version__
from rvpn.cli import report
from rvpn.cli.control_socket import ask
from rvpn.cli.subcommand import Subparsers, complain
from rvpn.constants import DEFAULT_CONTROL_SOCKET, Role
from rvpn.errors import LocalError
from rvpn.files import keyfile, policyfile
from rvpn.policy import load

#: Seconds that a service may take; reading a policy of thousands of entries is not done in a moment.
STATUS_TIME, RELOAD_TIME = 5.0, 30.0
#: Who can be drained.
_DRAINED = (Role.GATEWAY,)


def register(commands: Subparsers) -> None:
    """Add the commands."""
    status = commands.add_parser(
        "status",
        help="show what the services on this machine are doing",
        description="Show the sessions, traffic and dropped packets of the running services.",
    )
    status.add_argument(
        "--json", action="store_true", help="print one JSON object per service, each on a line"
    )
    status.add_argument(
        "--explain",
        action="store_true",
        help="say how soon the policy promises a failover, and how soon those of this run were",
    )
    _add_place(status)
    status.set_defaults(run=_status)
    reload = commands.add_parser(
        "reload",
        help="make running services read their policy again",
        description="Make running services read their policy again. A policy with errors changes nothing, "
        "and tunnels that it does not change keep their sessions.",
    )
    _add_place(reload)
    reload.set_defaults(run=_reload)
    drain = commands.add_parser(
        "drain",
        help="ask the clients of this gateway to move to other gateways",
        description="Ask the clients of the gateway on this machine to move to other gateways, and take no "
        "new ones. When `rvpn status` shows no traffic any more it can be stopped without losing a packet.",
    )
    _add_place(drain, _DRAINED)
    drain.set_defaults(run=_drain)
    undrain = commands.add_parser(
        "undrain",
        help="end a drain",
        description="Let clients use the gateway on this machine again.",
    )
    _add_place(undrain, _DRAINED)
    undrain.set_defaults(run=_undrain)


def _add_place(parser: argparse.ArgumentParser, roles: Collection[Role] = tuple(Role)) -> None:
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--socket",
        metavar="PATH",
        help="the service's control socket (default: "
        + " and ".join(DEFAULT_CONTROL_SOCKET.format(role=role.value) for role in roles)
        + ", where it exists)",
    )
    place.add_argument("--policy", metavar="FILE", help="take the control socket from this policy")


def _status(options: argparse.Namespace) -> int:
    if options.json:
        return _ask_each(options, "status", STATUS_TIME, json.dumps)
    show = report.explained if options.explain else report.text
    return _ask_each(options, "status", STATUS_TIME, show, between="\n\n")


def _drain(options: argparse.Namespace) -> int:
    return _ask_each(
        options,
        "drain",
        STATUS_TIME,
        lambda answer: f"draining: {report.counted(answer['sessions'], 'client')} asked to move",
        roles=_DRAINED,
    )


def _undrain(options: argparse.Namespace) -> int:
    return _ask_each(options, "undrain", STATUS_TIME, lambda _: "no longer draining", roles=_DRAINED)


def _reload(options: argparse.Namespace) -> int:
    return _ask_each(options, "reload", RELOAD_TIME, lambda answer: f"{answer['role']}: policy read again")


def _ask_each(
    options: argparse.Namespace,
    command: str,
    timeout: float,
    show: Callable[[dict[str, Any]], str],
    between: str = "\n",
    roles: Collection[Role] = tuple(Role),
) -> int:
    """
    Print the answer of every service of these roles; one that fails does not hide the others, but decides the
    exit code.
    """
    code, shown = 0, []
    for path in _sockets(options, roles):
        try:
            shown.append(show(ask(path, command, timeout)))
        except LocalError as error:
            complain(error)
            code = 1
        except (KeyError, TypeError, ValueError, AttributeError):
            complain(f"{path}: the answer is not that of rvpn {__version__}")
            code = 1
    if shown:
        print(between.join(shown))
    return code


def _sockets(options: argparse.Namespace, roles: Collection[Role]) -> list[str]:
    """Return the control sockets to ask. Raises `LocalError` if none is named and none exists."""
    if options.socket:
        return [options.socket]
    if options.policy:
        named = load(policyfile.read(options.policy), options.policy).control_socket
        if named:
            return [keyfile.beside(options.policy, named)]
    defaults = [DEFAULT_CONTROL_SOCKET.format(role=role.value) for role in roles]
    existing = [path for path in defaults if Path(path).exists()]
    if not existing:
        names = " or ".join(role.value for role in roles)
        raise LocalError(f"no {names} runs here: there is no {' nor '.join(defaults)}")
    return existing
