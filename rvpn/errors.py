"""
What can go wrong: by our own doing (`LocalError`) or by the bytes of somebody else (`RemoteError`).

Whatever a datagram or an inner packet holds, the code that reads it raises nothing but `RemoteError`; each
has a `DropReason`, and each reason has a counter in `rvpn status`.
"""

from enum import Enum, unique


@unique
class DropReason(Enum):
    """Why a packet or datagram went no further. The value is its name in `rvpn status` and in logs."""

    # Inner packets on their way out
    MALFORMED_PACKET = "malformed-packet"
    NO_TUNNEL = "no-tunnel"
    NO_SESSION = "no-session"
    QUEUE_FULL = "queue-full"
    REQUEST_REJECTED = "request-rejected"
    TOO_BIG = "too-big"
    SEND_FAILED = "send-failed"
    # Datagrams on their way in
    SHORT_DATAGRAM = "short-datagram"
    UNKNOWN_SPI = "unknown-spi"
    REPLAYED = "replayed"
    BAD_ICV = "bad-icv"
    MALFORMED_ESP = "malformed-esp"
    WRONG_SOURCE = "wrong-source"
    WRONG_DESTINATION = "wrong-destination"
    DELIVERY_FAILED = "delivery-failed"
    # Key exchange
    MALFORMED_KEY_EXCHANGE = "malformed-key-exchange"
    UNKNOWN_EXCHANGE = "unknown-exchange"
    WRONG_ORIGIN = "wrong-origin"
    BAD_COOKIE = "bad-cookie"
    TOO_MANY_EXCHANGES = "too-many-exchanges"
    AUTHENTICATION_FAILED = "authentication-failed"
    # Session control
    MALFORMED_CONTROL = "malformed-control"
    UNKNOWN_SESSION = "unknown-session"
    BAD_CONTROL_TAG = "bad-control-tag"
    REPLAYED_CONTROL = "replayed-control"
    UNEXPECTED_CONTROL = "unexpected-control"
    TOO_MANY_HEARTBEATS = "too-many-heartbeats"
    # Frames on the LAN of a gateway
    MALFORMED_NEIGHBOUR = "malformed-neighbour"


class RvpnError(Exception):
    """Base of all errors that rvpn raises on purpose."""


class LocalError(RvpnError):
    """
    Our configuration, machine or call is at fault. The text is for the person who can mend it: one line, or
    one for each fault of a policy.
    """


class RemoteError(RvpnError):
    """Somebody's bytes are at fault. `reason` is counted; `detail` is for the log and holds no secret."""

    def __init__(self, reason: DropReason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason
        self.detail = detail


class ContextFailed(RemoteError):
    """A token after which its security context is of no further use, so that the exchange is over."""


class SAExhausted(RvpnError):
    """An outbound SA reached its hard packet limit; its IV counter must never wrap (RFC 4106 section 3.1)."""


class CookieRequired(RvpnError):
    """The first token of a key exchange may be a recording; its sender must prove to be fresh (DESIGN 4)."""
