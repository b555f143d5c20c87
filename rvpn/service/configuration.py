"""
From a policy file to what a service runs with: the policy, the keys it names, and its places in the file
system.

Every error is a `LocalError` whose text a person can act on; nothing is changed by reading.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from rvpn import keyfile, policyfile
from rvpn.constants import DEFAULT_CONTROL_SOCKET, DEFAULT_STATE_DIRECTORY, Role
from rvpn.node import Credentials
from rvpn.policy import Diagnostic, Policy, PolicyError, Severity, grammar

#: What a running service cannot change, under the name that an operator knows it by.
_FIXED_AT_START = {
    "Port": attrgetter("policy.port"),
    "Listen": attrgetter("policy.listen"),
    "Name of [DEVICE]": attrgetter("policy.device_name"),
    "InnerAddress": attrgetter("policy.inner_addresses"),
    "Interface of [LAN]": attrgetter("policy.lan_interface"),
    "Presence": attrgetter("policy.presence"),
    "PrivateKey": attrgetter("credentials.private_key"),
    "PresharedKey": attrgetter("credentials.preshared_key"),
    "Socket": attrgetter("control_socket"),
    "StateDirectory": attrgetter("state_directory"),
}


@dataclass(frozen=True, slots=True)
class Configuration:
    """What one role runs with. Paths that the policy gives are relative to its own directory."""

    policy: Policy
    credentials: Credentials = field(repr=False)
    control_socket: Path
    state_directory: Path

    def fixed_but_changed(self, after: "Configuration") -> list[str]:
        """Return the names of settings that differ in `after` and take a restart."""
        return [name for name, setting in _FIXED_AT_START.items() if setting(self) != setting(after)]


def read(file: Path, role: Role) -> Configuration:
    """
    Read the policy in `file` for `role`, and the key files that it names.

    Raises `LocalError`; it is a `PolicyError` with all errors if the policy has any.
    """
    policy = _read_policy(file, role)
    place = file.parent
    assert policy.private_key is not None
    socket = policy.control_socket or DEFAULT_CONTROL_SOCKET.format(role=role.value)
    state = policy.state_directory or DEFAULT_STATE_DIRECTORY.format(role=role.value)
    return Configuration(
        policy=policy,
        credentials=Credentials(
            keyfile.load(str(place / policy.private_key)),
            keyfile.load(str(place / policy.preshared_key)) if policy.preshared_key else bytes(32),
        ),
        control_socket=place / socket,
        state_directory=place / state,
    )


def _read_policy(file: Path, role: Role) -> Policy:
    reading = grammar.read(policyfile.read(file), str(file))
    if errors := reading.errors or list(_missing(reading, role)):
        raise PolicyError(errors)
    return reading.policy


def _missing(reading: grammar.Reading, role: Role) -> Iterator[Diagnostic]:
    """Find what a faultless policy lacks for this role to run with it (DESIGN 7)."""
    policy = reading.policy
    lacking = []
    if policy.private_key is None:
        lacking.append(("[IDENTITY]", "found no PrivateKey in [IDENTITY], expected this node's key file"))
    if role is Role.CLIENT and not policy.tunnels:
        lacking.append(("[TUNNEL]", "found no entry in [TUNNEL], expected one: is this a gateway's policy?"))
    if role is Role.GATEWAY and not policy.lan_networks:
        lacking.append(("[LAN]", "found no Networks in [LAN], expected some: is this a client's policy?"))
    for section, message in lacking:
        yield Diagnostic(reading.filename, reading.lines.get(section, 1), Severity.ERROR, message)
