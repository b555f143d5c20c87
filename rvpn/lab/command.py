"""
`rvpn lab`: the laboratory from the command line, one at a time for each user.

    up, down, status, exec, follow       its life, and commands in its nodes
    fault, impair                        what goes wrong
    failover                             what that costs (rvpn.lab.trials_command)
    bench                                how fast it is (rvpn.lab.bench_command)
    demo                                 the demonstration

Its files and the socket of its holder are in a directory of mode 0700, which all these commands share.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rvpn.arguments import number, whole_number
from rvpn.cli.subcommand import Subparsers
from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.lab import bench_command, condition, faults, services, trials_command
from rvpn.lab.demo import demonstrate
from rvpn.lab.impairment import Impairment
from rvpn.lab.lab import Lab, default_directory, fresh_directory
from rvpn.lab.report import say, table
from rvpn.lab.series import Terms
from rvpn.lab.topology import BACK, BOTH, MAX_NODES, OUT, Topology

_DIRECTIONS = {OUT: (OUT,), BACK: (BACK,), "both": BOTH}
_INTERRUPT_TIME = 5.0


def register(commands: Subparsers) -> None:
    """Add `lab` and its subcommands."""
    lab = commands.add_parser(
        "lab",
        help="the patent's Fig. 2 on this machine: real services, faults, bad networks",
        description="Build a client, gateways and targets out of network namespaces on this machine, run the "
        "real services there, and break things. Needs root or user namespaces, and /dev/net/tun; has no way "
        "to the real network.",
    )
    parsers = lab.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _register_life(parsers)
    _register_trouble(parsers)
    trials_command.register(parsers)
    bench_command.register(parsers)
    demo = parsers.add_parser(
        "demo",
        help="show that it works: real traffic through the tunnel, and gateways that fail meanwhile",
        description="Start the lab, ping each target, fetch files and run TCP streams, and show from "
        "captures that the outside saw only ciphertext. Then kill the gateway in use, take the LAN from the "
        "next, and start the first again while traffic flows. Writes a report for a browser; exits with 0 if "
        "all of it worked.",
    )
    _add_family(demo)
    demo.add_argument("--keep", action="store_true", help="leave the lab up afterwards")
    demo.add_argument(
        "--report", type=Path, default=Path("rvpn-demo.html"), metavar="FILE", help="default: rvpn-demo.html"
    )
    trials_command.add_mechanism(demo)
    demo.set_defaults(
        run=lambda options: demonstrate(options.family, options.keep, options.report, options.mechanism)
    )


def _register_life(parsers: Subparsers) -> None:
    up = parsers.add_parser(
        "up",
        help="build the lab, start the services, leave it running",
        description="Build the lab, start the services with a client that leaves a silent gateway within "
        "0.2 s, and return; the lab runs on until `rvpn lab down`.",
    )
    _add_family(up)
    for name in ("gateways", "targets"):
        up.add_argument(
            f"--{name}", type=whole_number(1, MAX_NODES), default=3, metavar="N", help="how many (default: 3)"
        )
    up.add_argument(
        "--presence",
        choices=("none", "proxy-arp"),
        default="proxy-arp",
        help="whether gateways answer for the client on the LAN (default), or targets have routes",
    )
    trials_command.add_mechanism(up)
    up.add_argument("--bare", action="store_true", help="the network alone, without services")
    up.set_defaults(run=_up)
    down = parsers.add_parser("down", help="end the lab and everything in it")
    down.set_defaults(run=_down)
    status = parsers.add_parser("status", help="show nodes, addresses, services and faults")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.set_defaults(run=_status)
    execute = parsers.add_parser(
        "exec",
        help="run a command in a node",
        description="Run a command in a node, as its root; the exit code is the command's.",
    )
    execute.add_argument("node", metavar="NODE", help="client, router, lan, gateway1, target1, ...")
    execute.add_argument("command", metavar="COMMAND", help="what to run there")
    execute.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="what to give it")
    execute.set_defaults(run=_exec)
    follow = parsers.add_parser(
        "follow",
        help="route the targets' answers through the gateway in use",
        description="Route the client's inner addresses on the targets through the gateway that the client "
        "uses now, where the gateways do not answer for them (`up --presence none`). `up` does it once; "
        "after a failover it is to be done again.",
    )
    follow.set_defaults(run=_follow)


def _register_trouble(parsers: Subparsers) -> None:
    fault = parsers.add_parser(
        "fault",
        help="break a gateway, its links or its path, or mend it",
        description="Break something of one gateway, or mend it (the client is never touched):\n\n"
        + table(_fault_rows()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fault.add_argument("fault", choices=faults.FAULTS, metavar="FAULT", help="one of the above")
    fault.add_argument("gateway", metavar="GATEWAY", help="gateway1, gateway2, ...")
    fault.set_defaults(run=_fault)
    impair = parsers.add_parser(
        "impair",
        help="make paths slow, lossy, narrow, or put the client behind a NAT",
        description="Impair the paths between client and gateways. What is set replaces what was set before "
        "for these paths and directions.",
    )
    impair.add_argument("--delay", type=number(0), default=0.0, metavar="MS", help="one way, in milliseconds")
    impair.add_argument("--jitter", type=number(0), default=0.0, metavar="MS", help="so much more at most")
    for name in ("loss", "reorder", "duplicate"):
        impair.add_argument(
            f"--{name}", type=number(0, 100), default=0.0, metavar="PERCENT", help=f"{name} in percent"
        )
    impair.add_argument("--direction", choices=_DIRECTIONS, default="both", help="seen from the client")
    impair.add_argument(
        "--gateway", action="append", metavar="NAME", help="only this one's path; may be repeated"
    )
    impair.add_argument("--seed", type=int, default=1, metavar="N", help="of the random numbers (default: 1)")
    impair.add_argument("--mtu", type=int, metavar="BYTES", help="the largest packet that passes")
    impair.add_argument(
        "--nat", action="store_true", help="client behind a NAT; again: other address and ports"
    )
    impair.add_argument("--clear", action="store_true", help="undo everything")
    impair.set_defaults(run=_impair)


def _add_family(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--family",
        type=int,
        choices=(4, 6),
        default=4,
        help="IP version outside (default: 4); inside are both",
    )


def _fault_rows() -> Iterator[Sequence[str]]:
    for name, fault in faults.FAULTS.items():
        yield "", name, fault.words, f"undone by {fault.undo}" if fault.undo else ""


# --- Its life ------------------------------------------------------------------------------------


def _up(options: argparse.Namespace) -> int:
    topology = Topology(options.family, options.gateways, options.targets, options.presence == "proxy-arp")
    lab = Lab.start(topology, fresh_directory(), detached=True)
    try:
        if not options.bare:
            services.configure(lab, {Role.CLIENT: Terms().general()}, options.mechanism)
            gateway = services.start_all(lab)
            lab.serve_targets()
            say(f"The client has a session with {gateway}.")
    except BaseException:
        lab.close()
        raise
    say(f"The lab is up; its files are in {lab.directory}. `rvpn lab down` ends it.")
    if not options.bare:
        socket = lab.directory / "client.sock"
        say(f"Before and after a `rvpn lab fault`: rvpn status --explain --socket {socket}")
    return 0


def _down(_options: argparse.Namespace) -> int:
    _attach().close()
    return 0


def _status(options: argparse.Namespace) -> int:
    lab = _attach()
    status = lab.status()
    status["impairment"] = faults.impairment_status(lab)
    if options.json:
        say(json.dumps(status))
        return 0
    processes = status["processes"]
    say(f"Fig. 2, IPv{lab.topology.family} outside; files in {lab.directory}")
    say(table(_node_rows(lab, processes)))
    names = {str(lab.topology.gateway_address(name)): name for name in lab.topology.gateway_names}
    for line in condition.words(status["network"], status["impairment"], names):
        say(line)
    return 0


def _node_rows(lab: Lab, processes: dict[str, dict[str, object]]) -> Iterator[Sequence[object]]:
    def state(name: str) -> object:
        return processes[name]["state"] if name in processes else "-"

    topology = lab.topology
    yield "NODE", "PROCESS", "OUTSIDE", "LAN OR INNER"
    yield "client", state("client"), topology.client_address, _words(topology.inner_addresses)
    for name in topology.gateway_names:
        yield name, state(name), topology.gateway_address(name), _words(topology.lan_addresses(name))
    for name in topology.target_names:
        yield name, state(f"{name}-server"), "", _words(topology.lan_addresses(name))


def _words(things: Sequence[object]) -> str:
    return " ".join(map(str, things))


def _exec(options: argparse.Namespace) -> int:
    argv = [options.command, *options.arguments]
    files = (sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno())
    with _attach().spawn(options.node, argv, files, cwd=str(Path.cwd()), env=os.environ) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # The command is in a session of its own, so that the terminal's signal did not reach it.
            process.signal(signal.SIGINT)
            code = process.wait(_INTERRUPT_TIME)
    return code if code >= 0 else 128 - code


def _follow(_options: argparse.Namespace) -> int:
    say(f"The targets answer through {services.follow(_attach())}.")
    return 0


# --- What goes wrong -----------------------------------------------------------------------------


def _fault(options: argparse.Namespace) -> int:
    lab = _attach()
    _check_gateways(lab, [options.gateway])
    faults.FAULTS[options.fault].inflict(lab, options.gateway)
    return 0


def _impair(options: argparse.Namespace) -> int:
    lab = _attach()
    _check_gateways(lab, options.gateway or ())
    if options.clear:
        faults.clear(lab)
    impairment = Impairment(
        options.delay / 1000,
        options.jitter / 1000,
        options.loss / 100,
        options.reorder / 100,
        options.duplicate / 100,
    )
    if impairment != Impairment() or not (options.clear or options.nat or options.mtu):
        faults.impair(lab, impairment, options.gateway, _DIRECTIONS[options.direction], options.seed)
    if options.mtu:
        faults.set_mtu(lab, options.mtu, options.gateway)
    if options.nat:
        say(f"The client's public address is {faults.rebind(lab, options.seed)}.")
    return 0


def _attach() -> Lab:
    return Lab.attach(default_directory())


def _check_gateways(lab: Lab, names: Sequence[str]) -> None:
    for name in names:
        if name not in lab.topology.gateway_names:
            raise LocalError(f"no gateway {name}; the gateways are {', '.join(lab.topology.gateway_names)}")
