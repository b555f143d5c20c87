"""
The real services in the laboratory: keys and policies for every node, `twistd` processes, their status.

    configure -> <node>.policy, <node>.key -> start -> twistd in the node -> ask_status -> in_use
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rvpn.cli.control_socket import ask
from rvpn.constants import Mechanism, Role
from rvpn.errors import LocalError
from rvpn.files import keyfile
from rvpn.lab import certificates
from rvpn.lab.lab import Lab, tail
from rvpn.lab.topology import LAN, LAN_NETWORKS

START_TIME = 15.0
_POLL = 0.05

#: Keywords and values for the [GENERAL] section of a role's policies.
General = Mapping[Role, Mapping[str, str]]
#: Lines of a policy by section.
Sections = Mapping[str, Iterable[str]]


def configure(lab: Lab, general: General | None = None, mechanism: Mechanism = Mechanism.NOISE) -> None:
    """
    Make keys, or with `tls` certificates, and policies for the client and all gateways, in the laboratory's
    directory.

    `general` adds to [GENERAL]. Raises `LocalError` if there are keys already.
    """
    general = general or {}
    for_client, for_gateway = (_pin if mechanism is Mechanism.NOISE else _certify)(lab)
    _write(lab, "client", _client_policy(lab, for_client, general.get(Role.CLIENT, {})))
    for name in lab.topology.gateway_names:
        _write(lab, name, _gateway_policy(lab, name, for_gateway, general.get(Role.GATEWAY, {})))


def _pin(lab: Lab) -> tuple[Sections, Sections]:
    """Make keys; return what the client's and the gateways' policies say of each other's."""
    topology, directory = lab.topology, lab.directory
    keys = {n: keyfile.create(str(directory / f"{n}.key")) for n in ("client", *topology.gateway_names)}
    peers = [f"{topology.gateway_address(name)} = {keys[name]}" for name in topology.gateway_names]
    clients = f"Client1 = {keys['client']} {', '.join(map(str, topology.inner_addresses))}"
    identity = {"IDENTITY": (f"PrivateKey = {directory}/{{name}}.key",)}
    return {**identity, "PEERS": peers}, {**identity, "CLIENTS": (clients,)}


def _certify(lab: Lab) -> tuple[Sections, Sections]:
    """Make certificates; then no policy names anybody."""
    topology, directory = lab.topology, lab.directory
    inner = [str(address) for address in topology.inner_addresses]
    gateways = {name: [str(topology.gateway_address(name))] for name in topology.gateway_names}
    certificates.issue(directory, gateways, {"client": inner})
    files = (f"Certificate = {directory}/{{name}}.pem", f"CertificateKey = {directory}/{{name}}.key")
    by_default = {"GENERAL": ("Mechanism = tls",), "IDENTITY": files}
    authority = f"Authority1 = {directory / certificates.AUTHORITY}"
    return (
        {**by_default, "AUTHORITIES": (authority,)},
        {**by_default, "AUTHORITIES": (" ".join((authority, *inner)),)},
    )


def start(lab: Lab, *names: str, timeout: float = START_TIME) -> None:
    """
    Start services, and return when each answers. Raises `LocalError` with the end of the log of one that
    fails.
    """
    for name in names:
        role = Role.CLIENT if name == "client" else Role.GATEWAY
        argv = [
            str(Path(sys.executable).parent / "twistd"),
            "--nodaemon",
            f"--pidfile={lab.directory / name}.pid",
            f"rvpn-{role.value}",
            f"--policy={lab.directory / name}.policy",
            f"--json-log={lab.directory / name}.jsonl",
        ]
        with log_file(lab, name).open("ab") as log:
            lab.spawn(
                name, argv, (None, log.fileno(), log.fileno()), name=name, cwd=str(lab.directory)
            ).close()
    deadline = time.monotonic() + timeout
    for name in names:
        _wait_up(lab, name, deadline)


def start_all(lab: Lab) -> str:
    """
    Start every gateway and the client, and have the client use a gateway, which is returned.

    Needs `configure` before. Raises `LocalError` as `start` and `follow` do.
    """
    start(lab, *lab.topology.gateway_names, "client")
    target = lab.topology.lan_addresses(lab.topology.target_names[0])[0]
    # This only asks for a session; the answer may not find its way before `follow`.
    lab.traffic("client", "ping", target, "--count", 1, "--wait", 0)
    return follow(lab)


def wait_ended(lab: Lab, name: str, timeout: float) -> None:
    """Return when a service that was told to end has ended. Raises `LocalError` if it has not in time."""
    deadline = time.monotonic() + timeout
    while name in lab.status()["processes"]:
        if time.monotonic() > deadline:
            raise LocalError(f"{name} did not end within {timeout:g} s")
        time.sleep(_POLL / 5)


def ask_status(lab: Lab, name: str) -> dict[str, Any]:
    """Return what `rvpn status --json` would. Raises `LocalError` if the service does not answer."""
    return command(lab, name, "status")


def command(lab: Lab, name: str, command: str) -> dict[str, Any]:
    """Send a command to a service's control socket. Raises `LocalError` if it does not answer, or refuses."""
    return ask(_socket(lab, name), command)


def in_use(lab: Lab) -> str | None:
    """Return the gateway that the client uses now, by name, None if it uses none."""
    names = {str(lab.topology.gateway_address(name)): name for name in lab.topology.gateway_names}
    for session in ask_status(lab, "client")["sessions"]:
        if session["in_use"]:
            return names[session["gateway"]]
    return None


def follow(lab: Lab, timeout: float = 10.0) -> str:
    """
    Wait until the client uses a gateway, and have the targets answer through that one; return its name.

    Where gateways do not answer for the client's addresses on the LAN (DESIGN 8), the targets get routes.
    Some traffic must have asked for a session. Raises `LocalError` if there is none in time.
    """
    deadline = time.monotonic() + timeout
    while (gateway := in_use(lab)) is None:
        if time.monotonic() > deadline:
            raise LocalError(
                f"the client has no session after {timeout:g} s:\n{tail(log_file(lab, 'client'))}"
            )
        time.sleep(_POLL)
    if not lab.topology.proxy_arp:
        lab.change("point_targets_at", gateway)
    return gateway


def log_file(lab: Lab, name: str) -> Path:
    """Return where a service's text log is."""
    return lab.directory / f"{name}.log"


def _wait_up(lab: Lab, name: str, deadline: float) -> None:
    while True:
        try:
            ask_status(lab, name)
        except LocalError as error:
            if name not in lab.status()["processes"]:
                reason = "ended at once"
            elif time.monotonic() > deadline:
                reason = f"does not answer: {error}"
            else:
                time.sleep(_POLL)
                continue
            raise LocalError(f"the service in {name} {reason}\n{tail(log_file(lab, name))}") from None
        return


# --- Policies ------------------------------------------------------------------------------------


def _client_policy(lab: Lab, more: Sections, general: Mapping[str, str]) -> str:
    gateways = [str(lab.topology.gateway_address(name)) for name in lab.topology.gateway_names]
    tunnels = (f"Tunnel{number} = {network} Cluster 1" for number, network in enumerate(LAN_NETWORKS, 1))
    return _policy(
        {
            "GENERAL": _lines({"RandomizeClusters": "no", **general}),
            "DEVICE": ("Name = rvpn0", f"InnerAddress = {' '.join(map(str, lab.topology.inner_addresses))}"),
            "CLUSTER": (f"Cluster 1 = {' '.join(gateways)}",),
            "TUNNEL": tunnels,
        },
        more,
        lab,
        "client",
    )


def _gateway_policy(lab: Lab, name: str, more: Sections, general: Mapping[str, str]) -> str:
    return _policy(
        {
            "GENERAL": _lines({"Listen": str(lab.topology.gateway_address(name)), **general}),
            "DEVICE": ("Name = rvpn0",),
            "LAN": (
                f"Interface = {LAN}",
                f"Networks = {' '.join(map(str, LAN_NETWORKS))}",
                f"Presence = {'proxy-arp' if lab.topology.proxy_arp else 'none'}",
            ),
        },
        more,
        lab,
        name,
    )


def _lines(values: Mapping[str, str]) -> Iterator[str]:
    return (f"{keyword} = {value}" for keyword, value in values.items())


def _policy(sections: Sections, more: Sections, lab: Lab, name: str) -> str:
    """Write a policy of these sections, those of `more` last; `{name}` in the latter is the node's."""
    own = {"CONTROL": (f"Socket = {_socket(lab, name)}", f"StateDirectory = {lab.directory / name}.state")}
    merged = {title: [*lines] for title, lines in {**sections, **own}.items()}
    for title, lines in more.items():
        merged.setdefault(title, []).extend(line.format(name=name) for line in lines)
    return "\n\n".join("\n".join((f"[{title}]", *lines)) for title, lines in merged.items()) + "\n"


def _write(lab: Lab, name: str, policy: str) -> None:
    (lab.directory / f"{name}.policy").write_text(policy)


def _socket(lab: Lab, name: str) -> str:
    return str(lab.directory / f"{name}.sock")
