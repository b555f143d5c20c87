"""
What goes into a security context from outside, and the keys that come out of it.

`binding` makes the prologue of a context, so that both ends agree on it or the exchange fails; `derive`
turns an established context into the keys of one SA in each direction.
"""

from dataclasses import dataclass, field

from rvpn.constants import KEY_EXCHANGE_VERSION, Mechanism, Role
from rvpn.interfaces import SecurityContext

_ESP_KEY, _SALT, _CONTROL_KEY = 32, 4, 32


@dataclass(frozen=True, slots=True)
class DirectionKeys:
    """Keys of one direction of one SA: ESP key (32 bytes), ESP salt (4), session control key (32)."""

    esp_key: bytes = field(repr=False)
    salt: bytes = field(repr=False)
    control_key: bytes = field(repr=False)


def derive(context: SecurityContext) -> tuple[DirectionKeys, DirectionKeys]:
    """Return the keys from the initiator to the acceptor, and those from the acceptor to the initiator."""
    return _direction(context, b"rvpn initiator to acceptor"), _direction(
        context, b"rvpn acceptor to initiator"
    )


def _direction(context: SecurityContext, label: bytes) -> DirectionKeys:
    secret = context.export(label, _ESP_KEY + _SALT + _CONTROL_KEY)
    return DirectionKeys(
        esp_key=secret[:_ESP_KEY],
        salt=secret[_ESP_KEY : _ESP_KEY + _SALT],
        control_key=secret[_ESP_KEY + _SALT :],
    )


def binding(mechanism: Mechanism, initiator_role: Role, cookie: bytes) -> bytes:
    """
    Return what both ends must agree on before the first token (DESIGN 4): version, mechanism, roles,
    cookie.

    `cookie` is the one that the acceptor demanded, or empty. Transforms offered and all other choices need
    no place here: they are in `Parameters`, inside the authenticated tokens.
    """
    roles = {Role.CLIENT: 1, Role.GATEWAY: 2}
    return b"rvpn" + bytes([KEY_EXCHANGE_VERSION, mechanism, roles[initiator_role], len(cookie)]) + cookie
