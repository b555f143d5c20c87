"""
From a policy file to what a service runs with: the policy, the keys it names, and its places in the file
system.

Every error is a `LocalError` whose text a person can act on; nothing is changed by reading.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from rvpn.constants import DEFAULT_CONTROL_SOCKET, DEFAULT_STATE_DIRECTORY, Role
from rvpn.files import keyfile, policyfile
from rvpn.keyexchange.credentials import Authenticator, Credentials
from rvpn.policy import Diagnostic, Policy, PolicyError, Severity, grammar
from rvpn.policy.lint import missing_identities
from rvpn.policy.values import InlinePEM

#: What a running service cannot change, under the name that an operator knows it by.
_FIXED_AT_START = {
    "Port": attrgetter("policy.port"),
    "Listen": attrgetter("policy.listen"),
    "Offload": attrgetter("policy.offload"),
    "Name of [DEVICE]": attrgetter("policy.device_name"),
    "InnerAddress": attrgetter("policy.inner_addresses"),
    "Interface of [LAN]": attrgetter("policy.lan_interface"),
    "Presence": attrgetter("policy.presence"),
    "PrivateKey": attrgetter("credentials.private_key"),
    "the choice of mechanisms in [IDENTITY]": attrgetter("credentials.mechanisms"),
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
    socket = policy.control_socket or DEFAULT_CONTROL_SOCKET.format(role=role.value)
    state = policy.state_directory or DEFAULT_STATE_DIRECTORY.format(role=role.value)
    return Configuration(
        policy=policy,
        credentials=read_credentials(policy, place, role),
        control_socket=place / socket,
        state_directory=place / state,
    )


def read_credentials(policy: Policy, place: Path, role: Role) -> Credentials:
    """Read the key files and certificates that a policy in directory `place` names. Raises `LocalError`."""
    return Credentials(
        keyfile.load(str(place / policy.private_key)) if policy.private_key else b"",
        keyfile.load(str(place / policy.preshared_key)) if policy.preshared_key else bytes(32),
        read_certificates(policy, place, role),
    )


def read_certificates(policy: Policy, place: Path, role: Role) -> Authenticator | None:
    """Read the certificates that a policy in directory `place` names, if any. Raises `LocalError`."""
    if policy.certificate is None:
        return None
    # Imported here, so that a node without certificates is spared the memory.
    from rvpn.files import certificatefiles

    return certificatefiles.load(policy, place, role)


def certificate_files(policy: Policy, place: Path) -> list[Path]:
    """Return the files behind `Credentials.certificates`, which may change while a service runs."""
    named = (policy.certificate, policy.certificate_key, *policy.revoked)
    names = [name for name in (*named, *(a.file for a in policy.authorities)) if name is not None]
    return [place / name for name in names if not isinstance(name, InlinePEM)]


def _read_policy(file: Path, role: Role) -> Policy:
    reading = grammar.read(policyfile.read(file), str(file))
    if errors := reading.errors or list(_missing(reading, role)):
        raise PolicyError(errors)
    return reading.policy


def _missing(reading: grammar.Reading, role: Role) -> Iterator[Diagnostic]:
    """Find what a faultless policy lacks for this role to run with it (DESIGN 7)."""
    policy = reading.policy
    lacking = []
    for keyword in missing_identities(policy):
        what = "key file" if keyword == "PrivateKey" else "certificate"
        lacking.append(("[IDENTITY]", f"found no {keyword} in [IDENTITY], expected this node's {what}"))
    if policy.certificate is not None and not policy.authorities:
        found = "found no Authority<nr> in [AUTHORITIES], expected one: whose certificates are good?"
        lacking.append(("Certificate", found))
    if role is Role.CLIENT and not policy.tunnels:
        lacking.append(("[TUNNEL]", "found no entry in [TUNNEL], expected one: is this a gateway's policy?"))
    if role is Role.GATEWAY and not policy.lan_networks:
        lacking.append(("[LAN]", "found no Networks in [LAN], expected some: is this a client's policy?"))
    for section, message in lacking:
        yield Diagnostic(reading.filename, reading.lines.get(section, 1), Severity.ERROR, message)
