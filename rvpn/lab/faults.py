"""
What can be done to a laboratory while it works: faults of a gateway, its links and paths, and bad networks.

Each fault has an undo beside it, and `FAULTS` names both for `rvpn lab fault`. A test calls the same
functions.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from signal import SIGCONT, SIGKILL, SIGSTOP

from rvpn.lab import impair as impairer
from rvpn.lab import services, wire
from rvpn.lab.impairment import Impairment
from rvpn.lab.lab import Lab
from rvpn.lab.topology import BACK, BOTH, LAN, OUT, OUTSIDE

IMPAIRER = "impairment"
KILL_TIME = 5.0


def kill(lab: Lab, gateway: str) -> None:
    """Kill the service as a power failure would."""
    lab.signal(gateway, SIGKILL)


def restart(lab: Lab, gateway: str) -> None:
    """Start the service again, after a kill or (killing it now) without one."""
    if gateway in lab.status()["processes"]:
        kill(lab, gateway)
        services.wait_ended(lab, gateway, KILL_TIME)
    services.start(lab, gateway)


def freeze(lab: Lab, gateway: str) -> None:
    """Stop the process: its machine still answers ARP and ping, the service does nothing."""
    lab.signal(gateway, SIGSTOP)


def thaw(lab: Lab, gateway: str) -> None:
    """Let a frozen process go on."""
    lab.signal(gateway, SIGCONT)


def set_outside(lab: Lab, gateway: str, up: bool) -> None:
    """Take the gateway's outside interface down or up."""
    lab.change("set_link", gateway, OUTSIDE, up)


def set_lan(lab: Lab, gateway: str, up: bool) -> None:
    """Take the gateway's LAN interface down or up."""
    lab.change("set_link", gateway, LAN, up)


def cut(lab: Lab, gateway: str, directions: Iterable[str] = BOTH) -> None:
    """Drop in silence what the router gets for a path: from the client (OUT), to it (BACK), or both."""
    for direction in directions:
        lab.change("set_cut", gateway, direction, True)


def mend(lab: Lab, gateway: str) -> None:
    """Undo `cut` in both directions."""
    for direction in BOTH:
        lab.change("set_cut", gateway, direction, False)


def lose_keys(lab: Lab, gateway: str) -> None:
    """Have the running service forget all keys, as a restart does (X3)."""
    services.command(lab, gateway, "forget-keys")


def drain(lab: Lab, gateway: str) -> None:
    """Have the gateway ask its clients to move to others (X4)."""
    services.command(lab, gateway, "drain")


def undrain(lab: Lab, gateway: str) -> None:
    """Undo `drain`."""
    services.command(lab, gateway, "undrain")


def set_mtu(lab: Lab, mtu: int | None, gateways: Iterable[str] | None = None) -> None:
    """
    Lower the path MTU of some gateways (None: of all), or with None restore it; both ends learn it by ICMP.
    """
    for gateway in lab.topology.gateway_names if gateways is None else gateways:
        lab.change("set_mtu", gateway, mtu)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault as a command: what it does to a gateway, in words and in fact, and the fault that undoes it."""

    words: str
    inflict: Callable[[Lab, str], None]
    undo: str | None = None


FAULTS: Mapping[str, Fault] = {
    "kill": Fault("kill the service (SIGKILL)", kill, "restart"),
    "restart": Fault("start the service anew", restart),
    "freeze": Fault("stop the process (SIGSTOP)", freeze, "thaw"),
    "thaw": Fault("let it go on", thaw),
    "outside-down": Fault(
        "outside interface down", lambda lab, name: set_outside(lab, name, False), "outside-up"
    ),
    "outside-up": Fault("outside interface up", lambda lab, name: set_outside(lab, name, True)),
    "lan-down": Fault("LAN interface down", lambda lab, name: set_lan(lab, name, False), "lan-up"),
    "lan-up": Fault("LAN interface up", lambda lab, name: set_lan(lab, name, True)),
    "cut": Fault("path cut both ways, in silence", cut, "mend"),
    "cut-to-gateway": Fault("path cut to the gateway", lambda lab, name: cut(lab, name, [OUT]), "mend"),
    "cut-to-client": Fault("path cut to the client", lambda lab, name: cut(lab, name, [BACK]), "mend"),
    "mend": Fault("path whole again", mend),
    "lose-keys": Fault("forget all keys, in the running service", lose_keys),
    "drain": Fault("ask the clients to move away", drain, "undrain"),
    "undrain": Fault("be a gateway like any other again", undrain),
}


# --- Bad networks --------------------------------------------------------------------------------


def impair(
    lab: Lab,
    impairment: Impairment,
    gateways: Iterable[str] | None = None,
    directions: Iterable[str] = BOTH,
    seed: int = 1,
) -> None:
    """Impair some gateways' paths (None: all) from now on. Raises `LocalError` if the router cannot."""
    _start_impairer(lab)
    paths = [
        (gateway, direction)
        for gateway in (lab.topology.gateway_names if gateways is None else gateways)
        for direction in directions
    ]
    addressed = [(str(lab.topology.gateway_address(gateway)), direction) for gateway, direction in paths]
    _ask(lab, {"do": "set", "paths": addressed, "impairment": asdict(impairment), "seed": seed})
    for gateway, direction in paths:
        lab.change("set_divert", gateway, direction, True)


def rebind(lab: Lab, seed: int = 1) -> str:
    """
    Put the client behind a NAT, or have that NAT take other addresses and ports; return its public address.
    """
    _start_impairer(lab)
    public: str = _ask(lab, {"do": "rebind", "seed": seed})["public"]
    for gateway in lab.topology.gateway_names:
        lab.change("set_divert", gateway, OUT, True)
    return public


def clear(lab: Lab) -> None:
    """Undo `impair`, `rebind` and `set_mtu`."""
    set_mtu(lab, None)
    if IMPAIRER not in lab.status()["processes"]:
        return
    for gateway in lab.topology.gateway_names:
        for direction in BOTH:
            lab.change("set_divert", gateway, direction, False)
    _ask(lab, {"do": "clear"})


def impairment_status(lab: Lab) -> wire.Message | None:
    """Return what the impairment counted in each direction, None if there is none."""
    return _ask(lab, {"do": "status"}) if IMPAIRER in lab.status()["processes"] else None


def _start_impairer(lab: Lab) -> None:
    if IMPAIRER in lab.status()["processes"]:
        return
    argv = [sys.executable, "-m", "rvpn.lab.impair", str(lab.directory), str(lab.topology.client_address)]
    lab.start_ready("router", argv, IMPAIRER)
    lab.change("connect_impairment")


def _ask(lab: Lab, request: wire.Message) -> wire.Message:
    return wire.ask(lab.directory / impairer.SOCKET, request)
