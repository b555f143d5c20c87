"""
All exchanges that others began with this node (DESIGN 4).

    first token -> cookie? -> context -> answer, half open -> established -> confirmed by the caller, forgotten

Only half-open exchanges are kept, at most `MAX_HALF_OPEN` and each for `HALF_OPEN_TIME`. An address is
proven if its messages carry the MAC of a cookie; it is asked for one under load, if its first token takes
several datagrams, for mechanisms that always want one, and where the context asks because a message may be
a recording. Until then nothing is sent that is longer than what drew it. After the confirmation a cookie
counts as spent, so that a recorded first message begins nothing again.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from rvpn.agenda import Agenda, Appointment
from rvpn.constants import Mechanism
from rvpn.errors import CookieRequired, DropReason, RemoteError
from rvpn.interfaces import Action, Endpoint, Path, RandomSource, SecurityContext, Send
from rvpn.keyexchange import tokens
from rvpn.keyexchange.cookies import Cookies
from rvpn.keyexchange.tokens import Fragment, Message, Rejected
from rvpn.keyexchange.transport import Transport

#: Half-open exchanges in all; no more are begun.
MAX_HALF_OPEN = 1024
#: Seconds from an exchange's first message until it is forgotten, if no confirmation comes.
HALF_OPEN_TIME = 10.0
#: From so many half-open exchanges, or first messages without a cookie in a second, on, cookies are demanded.
LOAD_HALF_OPEN = 256
LOAD_RATE = 200

_Key = tuple[Endpoint, bytes, bytes]

_REJECTED = {
    DropReason.AUTHENTICATION_FAILED: Rejected.AUTHENTICATION_FAILED,
    DropReason.TOO_MANY_EXCHANGES: Rejected.BUSY,
}


@dataclass(frozen=True, slots=True)
class AcceptRequest:
    """Who wants a context: `cookie` is empty unless the address has proved to receive what is sent to it."""

    exchange_id: bytes
    path: Path
    cookie: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Established:
    """A context that is established at this end; the peer has yet to prove that it has the keys."""

    exchange_id: bytes
    path: Path
    context: SecurityContext
    cookie: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send back, what came of it, and what to count if the message was refused."""

    datagrams: list[bytes] = field(repr=False)
    established: Established | None = None
    refused: RemoteError | None = None


@dataclass(slots=True)
class _HalfOpen:
    transport: Transport
    path: Path
    expiry: Appointment
    repetition: Appointment | None = None
    announced: bool = False


class Acceptor:
    """
    Answers first messages, and carries on what they began.

    `contexts` makes the accepting context of each mechanism. Both it and `SecurityContext.step` may raise
    RemoteError, which draws a rejection, and CookieRequired; neither may leave anything behind then.
    """

    def __init__(
        self,
        contexts: Mapping[Mechanism, Callable[[AcceptRequest], SecurityContext]],
        random: RandomSource,
        now: float,
        always_cookie: Collection[Mechanism] = (Mechanism.TLS,),
    ) -> None:
        self._contexts = contexts
        self._always_cookie = always_cookie
        self._cookies = Cookies(random, now)
        self._agenda = Agenda()
        self._half_open: dict[_Key, _HalfOpen] = {}
        self._second = now
        self._firsts = 0

    def __len__(self) -> int:
        return len(self._half_open)

    def receive(self, message: Message, path: Path, now: float) -> Reply:
        """
        Take a message for an acceptor (`Message.to_acceptor`).

        Raises RemoteError with reason BAD_COOKIE, UNKNOWN_EXCHANGE, REPLAYED (the cookie is spent) or
        MALFORMED_KEY_EXCHANGE (too short for any answer). A refusal that is told to the peer is not raised
        but in `Reply.refused`: AUTHENTICATION_FAILED, TOO_MANY_EXCHANGES, or what the context raised.
        """
        raise NotImplementedError

    def confirmed(self, established: Established) -> None:
        """
        Forget an exchange whose peer has proved that it has the keys; harmless if it is forgotten already.
        """
        raise NotImplementedError

    def deadline(self) -> float | None:
        """Return when `advance` is to be called next, or None."""
        return self._agenda.deadline()

    def advance(self, now: float) -> list[Action]:
        """Repeat tokens to proven addresses, and forget exchanges that were not confirmed in time."""
        return self._agenda.advance(now)
