"""
All exchanges that others began with this node (DESIGN 4).

    first token -> cookie? -> context -> answer, half open -> established -> confirmed: forgotten

Only half-open exchanges are kept, at most `MAX_HALF_OPEN` and each for `HALF_OPEN_TIME`. Where there is no
room, the oldest goes that a stranger began, of the address with the most of these. An address is
proven if its messages carry the MAC of a cookie. It is asked for one under load, if its first token takes
several datagrams, for mechanisms that always want one, and where the context asks because a message may be
a recording. Until then nothing is sent that is longer than what drew it. A cookie with which an exchange
was established is spent, so that a recording of that exchange begins nothing again.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from rvpn.agenda import Agenda, Appointment
from rvpn.constants import Mechanism
from rvpn.errors import ContextFailed, CookieRequired, DropReason, RemoteError
from rvpn.interfaces import Action, Endpoint, Path, RandomSource, SecurityContext, Send
from rvpn.keyexchange import tokens
from rvpn.keyexchange.cookies import Cookies
from rvpn.keyexchange.tokens import Fragment, Message, Rejected
from rvpn.keyexchange.transport import Transport

#: Half-open exchanges in all; no more are begun, unless a stranger's makes room.
MAX_HALF_OPEN = 1024
#: Of these, exchanges of mechanisms that keep much for an address before anybody has authenticated there: so
#: they do not crowd out the others. One of `tls` takes 70 KiB.
MAX_HEAVY = 512
#: Seconds from an exchange's first message until it is forgotten, if no confirmation comes.
HALF_OPEN_TIME = 10.0
#: From so many half-open exchanges, or first messages without a cookie in a second, on, cookies are demanded.
LOAD_HALF_OPEN = 256
LOAD_RATE = 200
#: Mechanisms whose first token fits one datagram and authenticates its sender: in pieces it is refused, so
#: that nobody who has not authenticated occupies a half-open exchange.
IN_ONE_DATAGRAM = frozenset((Mechanism.NOISE,))

_Key = tuple[Endpoint, bytes, bytes]

_REJECTED = {
    DropReason.AUTHENTICATION_FAILED: Rejected.AUTHENTICATION_FAILED,
    DropReason.TOO_MANY_EXCHANGES: Rejected.BUSY,
}


@dataclass(frozen=True, slots=True)
class AcceptRequest:
    """
    Who wants a context, and since when: `cookie` is empty unless the address has proved to receive what is
    sent to it.
    """

    exchange_id: bytes
    path: Path
    cookie: bytes = field(repr=False)
    begun_at: float


@dataclass(frozen=True, slots=True)
class Established:
    """A context that is established at this end; the peer has yet to prove that it has the keys."""

    request: AcceptRequest
    context: SecurityContext

    @property
    def path(self) -> Path:
        """Where the peer is."""
        return self.request.path


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send back, what came of it, and what to count if the message was refused."""

    datagrams: list[bytes] = field(repr=False)
    established: Established | None = None
    refused: RemoteError | None = None


@dataclass(slots=True)
class _HalfOpen:
    request: AcceptRequest
    transport: Transport
    expiry: float
    heavy: bool
    timer: Appointment | None = None
    announced: bool = False


class Acceptor:
    """
    Answers first messages, and carries on what they began.

    `contexts` makes the accepting context of each mechanism. It and the context's `step` may raise
    RemoteError, which draws a rejection, and CookieRequired; neither may leave anything behind then.
    Repetitions and expiry are on the node's `agenda`. `always_cookie` has to name the mechanisms whose
    answers may be longer than what draws them.
    """

    def __init__(
        self,
        contexts: Mapping[Mechanism, Callable[[AcceptRequest], SecurityContext]],
        agenda: Agenda,
        random: RandomSource,
        now: float,
        always_cookie: Collection[Mechanism] = (Mechanism.TLS,),
    ) -> None:
        self._contexts = {int(mechanism): make for mechanism, make in contexts.items()}
        self._always_cookie = frozenset(always_cookie)
        self._agenda = agenda
        self._cookies = Cookies(random, now)
        self._half_open: dict[_Key, _HalfOpen] = {}
        self._heavy = 0
        self._strangers: dict[bytes, dict[_Key, AcceptRequest]] = {}
        self._second = now
        self._firsts = 0

    def __len__(self) -> int:
        """Return how many exchanges are half open."""
        return len(self._half_open)

    def receive(self, message: Message, path: Path, now: float) -> Reply:
        """
        Take a message; the reply goes back along `path`.

        Raises RemoteError for what draws no reply: BAD_COOKIE, UNKNOWN_EXCHANGE, REPLAYED (its cookie is
        spent), MALFORMED_KEY_EXCHANGE. What draws a rejection is in `Reply.refused` instead.
        """
        if not message.to_acceptor:
            raise RemoteError(DropReason.UNKNOWN_EXCHANGE, "not for an acceptor")
        cookie = self._cookies.of(message, path.remote, now)
        request = AcceptRequest(message.exchange_id, path, cookie, now)
        try:
            if (exchange := self._half_open.get(_key(request))) is not None:
                reply = self._go_on(exchange, message, now)
            elif isinstance(message, Fragment) and message.token == 0:
                reply = self._begin(request, message, now)
            else:
                raise RemoteError(DropReason.UNKNOWN_EXCHANGE)
        except CookieRequired:
            reply = self._demand(request, message, now)
        if not cookie and sum(map(len, reply.datagrams)) > len(message.datagram):
            raise RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, "shorter than its answer")
        return reply

    def confirmed(self, established: Established) -> None:
        """Forget an exchange whose peer has proved that it has the keys; harmless if that is done already."""
        self._forget(established.request)

    def refuse(self, established: Established, message: Message, error: RemoteError) -> Reply:
        """Forget an exchange of which `message` was the last; its answer, with our keys, is not sent."""
        self._forget(established.request)
        return _refuse(message, _REJECTED.get(error.reason, Rejected.REFUSED), error)

    # --- a new exchange -------------------------------------------------------------------------------

    def _begin(self, request: AcceptRequest, first: Fragment, now: float) -> Reply:
        make_context = self._contexts.get(first.mechanism)
        if make_context is None:
            return _refuse(first, Rejected.UNKNOWN_MECHANISM, _without_identity(first.mechanism))
        if first.count > 1 and first.mechanism in IN_ONE_DATAGRAM:
            raise RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, "a first token in pieces")
        self._check_cookie(request, first, now)
        heavy = first.mechanism not in IN_ONE_DATAGRAM
        if not self._has_room(heavy) or (request.cookie and self._cookies.full):
            return _refuse(first, Rejected.BUSY, RemoteError(DropReason.TOO_MANY_EXCHANGES))
        try:
            transport = Transport(
                make_context(request), first.mechanism, request.exchange_id, request.cookie, initiator=False
            )
            datagrams = transport.receive(first, now)
        except RemoteError as error:
            return _refuse(first, _REJECTED.get(error.reason, Rejected.REFUSED), error)
        if not request.cookie and sum(map(len, datagrams)) > len(first.datagram):
            raise CookieRequired
        exchange = _HalfOpen(request, transport, now + HALF_OPEN_TIME, heavy)
        self._half_open[_key(request)] = exchange
        self._heavy += heavy
        if heavy:
            self._strangers.setdefault(_origin(request), {})[_key(request)] = request
        return self._reply(exchange, datagrams)

    def _check_cookie(self, request: AcceptRequest, first: Fragment, now: float) -> None:
        """Raise RemoteError if the cookie has served before, CookieRequired if there has to be one."""
        if request.cookie:
            if self._cookies.is_spent(request.cookie):
                raise RemoteError(DropReason.REPLAYED, "the cookie is spent")
        elif self._wants_cookie(first, now):
            raise CookieRequired

    def _has_room(self, heavy: bool) -> bool:
        """
        Tell whether one more can begin, and if need be forget another one for it.

        So nobody is kept out by who has fewer addresses than there are places, and does not begin them all
        anew within the time of one exchange.
        """
        crowded = len(self._half_open) >= MAX_HALF_OPEN or (heavy and self._heavy >= MAX_HEAVY)
        greediest = max(self._strangers.values(), key=len, default=None)
        if crowded and greediest is not None:
            self._forget(next(iter(greediest.values())))
            return True
        return not crowded

    def _wants_cookie(self, first: Fragment, now: float) -> bool:
        if now - self._second >= 1:
            self._second, self._firsts = now, 0
        self._firsts += 1
        return (
            first.mechanism in self._always_cookie
            or first.count > 1
            or self._firsts > LOAD_RATE
            or len(self._half_open) >= LOAD_HALF_OPEN
        )

    def _demand(self, request: AcceptRequest, first: Message, now: float) -> Reply:
        cookie = self._cookies.issue(request.path.remote, request.exchange_id, now)
        return Reply([tokens.demand(first, cookie)])

    # --- half-open exchanges -----------------------------------------------------------------------------

    def _go_on(self, exchange: _HalfOpen, message: Message, now: float) -> Reply:
        try:
            return self._reply(exchange, exchange.transport.receive(message, now))
        except RemoteError as error:
            if message.token == 0 or isinstance(error, ContextFailed):
                self._forget(exchange.request)
            return _refuse(message, _REJECTED.get(error.reason, Rejected.REFUSED), error)

    def _reply(self, exchange: _HalfOpen, datagrams: list[bytes]) -> Reply:
        """Tell once that the context is established."""
        self._set_timer(exchange)
        context = exchange.transport.context
        if exchange.announced or not context.established:
            return Reply(datagrams)
        exchange.announced = True
        self._is_no_stranger(exchange.request)
        if exchange.request.cookie:
            self._cookies.spend(exchange.request.cookie)
        return Reply(datagrams, Established(exchange.request, context))

    def _set_timer(self, exchange: _HalfOpen) -> None:
        if exchange.timer is not None:
            exchange.timer.cancel()
        due = min(exchange.expiry, exchange.transport.due)
        exchange.timer = self._agenda.at(due, lambda now: self._due(exchange, now))

    def _due(self, exchange: _HalfOpen, now: float) -> list[Action]:
        if now >= exchange.expiry:
            self._forget(exchange.request)
            return []
        datagrams = exchange.transport.repeat(now)
        self._set_timer(exchange)
        return [Send(datagram, exchange.request.path) for datagram in datagrams]

    def _forget(self, request: AcceptRequest) -> None:
        exchange = self._half_open.pop(_key(request), None)
        if exchange is None:
            return
        self._heavy -= exchange.heavy
        self._is_no_stranger(request)
        if exchange.timer is not None:
            exchange.timer.cancel()

    def _is_no_stranger(self, request: AcceptRequest) -> None:
        """Leave out of account who has authenticated, or is forgotten."""
        origin = _origin(request)
        begun = self._strangers.get(origin, {})
        begun.pop(_key(request), None)
        if not begun:
            self._strangers.pop(origin, None)


def _origin(request: AcceptRequest) -> bytes:
    """Return what everybody has at least one of: an IPv4 address, or the /64 of an IPv6 address."""
    packed = request.path.remote.address.packed
    return packed[:8] if len(packed) == 16 else packed


def _key(request: AcceptRequest) -> _Key:
    return request.path.remote, request.exchange_id, request.cookie


def _without_identity(mechanism: int) -> RemoteError:
    known = mechanism in set(Mechanism)
    name = Mechanism(mechanism).name.lower() if known else f"{mechanism}, which is unknown"
    return RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, f"no identity here for mechanism {name}")


def _refuse(message: Message, reason: Rejected, error: RemoteError) -> Reply:
    return Reply([tokens.reject(message, reason)], refused=error)
