"""
From a policy file to what a service runs with: the policy, the keys it names, and its places in the file
system.

Every error is a `LocalError` whose text a person can act on; nothing is changed by reading.
"""

from dataclasses import dataclass, field
from pathlib import Path

from rvpn import keyfile
from rvpn.constants import DEFAULT_CONTROL_SOCKET, DEFAULT_STATE_DIRECTORY, Role
from rvpn.errors import LocalError
from rvpn.node import Credentials
from rvpn.policy import Policy, load


@dataclass(frozen=True, slots=True)
class Configuration:
    """What one role runs with. Paths that the policy gives are relative to its own directory."""

    file: Path
    policy: Policy
    credentials: Credentials = field(repr=False)
    control_socket: Path
    state_directory: Path


def read(file: str, role: Role) -> Configuration:
    """
    Read the policy in `file` for `role`.

    Raises `LocalError`; it is a `PolicyError` with all errors if the policy has any.
    """
    path = Path(file).absolute()
    policy = load(_text(path, file), file)
    _check(policy, file, role)
    place = path.parent
    assert policy.private_key is not None
    socket = policy.control_socket or DEFAULT_CONTROL_SOCKET.format(role=role.value)
    state = policy.state_directory or DEFAULT_STATE_DIRECTORY.format(role=role.value)
    return Configuration(
        file=path,
        policy=policy,
        credentials=Credentials(
            keyfile.load(str(place / policy.private_key)),
            keyfile.load(str(place / policy.preshared_key)) if policy.preshared_key else bytes(32),
        ),
        control_socket=place / socket,
        state_directory=place / state,
    )


def _text(path: Path, file: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise LocalError(f"{file}: cannot read the policy: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise LocalError(f"{file}: found a byte that is no UTF-8 at offset {error.start}") from None


def _check(policy: Policy, file: str, role: Role) -> None:
    """Refuse a policy that this role cannot run with (DESIGN 7)."""
    if policy.private_key is None:
        raise LocalError(f"{file}: found no PrivateKey in [IDENTITY], expected this node's key file")
    if role is Role.CLIENT and not policy.tunnels:
        raise LocalError(f"{file}: found no entry in [TUNNEL]: is this a gateway's policy?")
    if role is Role.GATEWAY and not policy.lan_networks:
        raise LocalError(f"{file}: found no Networks in [LAN]: is this a client's policy?")
