"""
Two ends of a key exchange in memory.

`Network` joins them and loses, delays and duplicates by the test's seed. `Gateway` is an acceptor alone, with
the mechanism `noise`. `ChattyContext` is a mechanism with as many tokens of whatever size a test wants, and
no cryptography.
"""

import heapq
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import ip_address
from itertools import count
from random import Random
from typing import Any

from rvpn.agenda import Agenda
from rvpn.constants import Mechanism, TransformID
from rvpn.errors import CookieRequired, DropReason, RemoteError
from rvpn.interfaces import (
    Action,
    Authentication,
    Endpoint,
    Initiation,
    Parameters,
    Path,
    PeerIdentity,
    SecurityContext,
    Send,
)
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptor import Acceptor, AcceptRequest, Established, Reply
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.noise import NoiseAcceptor, NoiseInitiator, public_key
from rvpn.keyexchange.tai64n import tai64n
from rvpn.keyexchange.tokens import CookieDemand, Envelope, Message

PATH = Path(Endpoint(ip_address("192.0.2.1"), 4500))
EXCHANGE_ID = b"exchange"

CLIENT, GATEWAY = bytes([1]) * 32, bytes([2]) * 32
CLIENT_EPHEMERAL, GATEWAY_EPHEMERAL = bytes([3]) * 32, bytes([4]) * 32
PSK = bytes(range(32))
NOW = tai64n(1_700_000_000.5)
OFFER = Parameters(0x1000, (TransformID.AES_GCM_16_256, TransformID.CHACHA20_POLY1305), lifetime=7200.0)
ANSWER = Parameters(0x2000, (TransformID.CHACHA20_POLY1305,), lifetime=3600.0)


def path(number: int) -> Path:
    """Return the path to some other peer."""
    return Path(Endpoint(ip_address((10 << 24) + number), 4500))


class ChattyContext:
    """
    Exchanges `lengths[n]` bytes as token n, both ends by turns, and takes no others.

    `cookie` is in every token. As noise's, the context survives a token that is not right.
    """

    def __init__(self, lengths: tuple[int, ...], cookie: bytes, *, initiator: bool) -> None:
        self._tokens = [
            (blake2b(n.to_bytes(2, "big") + cookie).digest() * (length // 64 + 1))[:length]
            for n, length in enumerate(lengths)
        ]
        self._next = 1 if initiator else 0
        self.established = False
        self.peer = PeerIdentity(Mechanism.TLS, "peer")
        self.authentication = Authentication(Mechanism.TLS, "", "")
        self.own_parameters = self.peer_parameters = Parameters(0x1000, ())

    def step(self, token: bytes | None) -> bytes | None:
        """See `SecurityContext`."""
        if token is None:
            return self._tokens[0]
        if self.established or token != self._tokens[self._next]:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED)
        answer, self._next = self._next + 1, self._next + 2
        self.established = answer >= len(self._tokens) - 1
        return self._tokens[answer] if answer < len(self._tokens) else None

    def export(self, label: bytes, length: int) -> bytes:
        """See `SecurityContext`."""
        return bytes(length)


def identity(private: bytes) -> PeerIdentity:
    """Return who has this private key."""
    return PeerIdentity(Mechanism.NOISE, b64encode(public_key(private)).decode())


def noise_initiator(**changes: Any) -> NoiseInitiator:
    """Return the client's end."""
    arguments: dict[str, Any] = {
        "private_key": CLIENT,
        "peer": identity(GATEWAY),
        "ephemeral": CLIENT_EPHEMERAL,
        "preshared_key": PSK,
        "prologue": b"prologue",
        "timestamp": NOW,
        "parameters": OFFER,
    }
    return NoiseInitiator(**(arguments | changes))


def noise_acceptor(**changes: Any) -> NoiseAcceptor:
    """Return the gateway's end; it accepts everybody."""
    arguments: dict[str, Any] = {
        "private_key": GATEWAY,
        "ephemeral": GATEWAY_EPHEMERAL,
        "preshared_key": PSK,
        "prologue": b"prologue",
        "authorize": lambda initiation: ANSWER,
    }
    return NoiseAcceptor(**(arguments | changes))


def stepped(context: SecurityContext, token: bytes | None) -> bytes:
    """Return the token that this one draws."""
    answer = context.step(token)
    assert answer is not None
    return answer


@dataclass
class Network:
    """
    The way between one initiator and one acceptor, and the clock of both.

    `loss` and `duplication` are probabilities, `delay` is in seconds and `jitter` what is added to it at
    most. `sent` keeps all datagrams, in order.
    """

    exchange: InitiatorExchange
    acceptor: Acceptor
    agenda: Agenda
    random: Random = field(default_factory=lambda: Random(1))
    loss: float = 0.0
    duplication: float = 0.0
    delay: float = 0.01
    jitter: float = 0.0
    loses: Callable[[bytes], bool] = lambda datagram: False
    now: float = 0.0
    established: list[Established] = field(default_factory=list)
    refused: list[RemoteError] = field(default_factory=list)
    to_acceptor: list[bytes] = field(default_factory=list)
    to_initiator: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._serial = count()
        self._under_way: list[tuple[float, int, Callable[[bytes], None], bytes]] = []

    def run(self, until: float) -> None:
        """Let time pass until the initiator has its context or has failed, at most to `until`."""
        self._to_acceptor(self.exchange.start(self.now))
        while self.exchange.context is None and self.exchange.failed is None:
            self.now = min(self._next(), until)
            if self.now >= until:
                return
            if self._under_way and self._under_way[0][0] <= self.now:
                _, _, receive, datagram = heapq.heappop(self._under_way)
                receive(datagram)
            self._to_acceptor(self.exchange.advance(self.now))
            self._send(self.agenda.advance(self.now))

    def _next(self) -> float:
        arrival = self._under_way[0][0] if self._under_way else float("inf")
        return min(arrival, self.exchange.deadline(), self.agenda.deadline() or float("inf"))

    def _send(self, actions: list[Action]) -> None:
        self._to_initiator([action.datagram for action in actions if isinstance(action, Send)])

    def _to_acceptor(self, datagrams: list[bytes]) -> None:
        self.to_acceptor += datagrams
        self._carry(datagrams, self._at_acceptor)

    def _to_initiator(self, datagrams: list[bytes]) -> None:
        self.to_initiator += datagrams
        self._carry(datagrams, self._at_initiator)

    def _carry(self, datagrams: list[bytes], receive: Callable[[bytes], None]) -> None:
        for datagram in datagrams:
            copies = (self.random.random() >= self.loss) + (self.random.random() < self.duplication)
            for _ in range(0 if self.loses(datagram) else copies):
                arrival = self.now + self.delay + self.jitter * self.random.random()
                heapq.heappush(self._under_way, (arrival, next(self._serial), receive, datagram))

    def _at_acceptor(self, datagram: bytes) -> None:
        try:
            reply = self.acceptor.receive(tokens.decode(datagram), PATH, self.now)
        except RemoteError as error:
            self.refused.append(error)
            return
        if reply.refused is not None:
            self.refused.append(reply.refused)
        if reply.established is not None:
            self.established.append(reply.established)
        self._to_initiator(reply.datagrams)

    def _at_initiator(self, datagram: bytes) -> None:
        try:
            self._to_acceptor(self.exchange.receive(tokens.decode(datagram), self.now))
        except RemoteError as error:
            self.refused.append(error)


def chatty_acceptor(
    lengths: tuple[int, ...], agenda: Agenda, random: Random, *, cookies: bool = False
) -> Acceptor:
    """Return an acceptor whose tokens are as long as the test wants; it wants a cookie always or never."""

    def accepting_context(request: AcceptRequest) -> SecurityContext:
        return ChattyContext(lengths, request.cookie, initiator=False)

    always = (Mechanism.TLS,) if cookies else ()
    return Acceptor({Mechanism.TLS: accepting_context}, agenda, random, 0.0, always)


def chatty(
    lengths: tuple[int, ...], *, lifetime: float = 5.0, seed: int = 1, cookies: bool = True
) -> Network:
    """Return both ends of an exchange with `ChattyContext`s; the mechanism wants a cookie always or never."""

    def new_context(cookie: bytes) -> SecurityContext:
        return ChattyContext(lengths, cookie, initiator=True)

    agenda, random = Agenda(), Random(seed)
    acceptor = chatty_acceptor(lengths, agenda, random, cookies=cookies)
    exchange = InitiatorExchange(EXCHANGE_ID, Mechanism.TLS, new_context, 0.0, lifetime)
    return Network(exchange, acceptor, agenda, random)


Authorize = Callable[[AcceptRequest, Initiation], Parameters]


class NewestTimestamp:
    """A gateway's decision: a timestamp not newer than the last one known is accepted with a cookie alone."""

    def __init__(self) -> None:
        self.newest = b""

    def __call__(self, request: AcceptRequest, initiation: Initiation) -> Parameters:
        """Accept, or ask for a cookie."""
        timestamp = initiation.timestamp or b""
        if timestamp <= self.newest and not request.cookie:
            raise CookieRequired
        self.newest = max(self.newest, timestamp)
        return ANSWER


class Gateway:
    """An acceptor of mechanism noise whose prologue is the cookie, and its agenda."""

    def __init__(self, authorize: Authorize | None = None, seed: int = 1) -> None:
        self.agenda = Agenda()
        decide = authorize or NewestTimestamp()
        self.ephemerals = Random(2)

        def accept(request: AcceptRequest) -> NoiseAcceptor:
            return noise_acceptor(
                ephemeral=self.ephemerals.randbytes(32),
                prologue=request.cookie,
                authorize=lambda initiation: decide(request, initiation),
            )

        self.acceptor = Acceptor({Mechanism.NOISE: accept}, self.agenda, Random(seed), 0.0)

    def receive(self, datagram: bytes, way: Path = PATH, now: float = 0.0) -> Reply:
        """Take a datagram as a node does."""
        return self.acceptor.receive(tokens.decode(datagram), way, now)

    def demanded(self, datagram: bytes, way: Path = PATH, now: float = 0.0) -> bytes:
        """Return the cookie that a datagram draws."""
        (demand,) = map(tokens.decode, self.receive(datagram, way, now).datagrams)
        assert isinstance(demand, CookieDemand)
        return demand.cookie


def first(
    exchange_id: bytes = EXCHANGE_ID, cookie: bytes = b"", timestamp: bytes = NOW
) -> tuple[bytes, NoiseInitiator]:
    """Return the datagram that begins an exchange, and the context that waits for the answer."""
    context = noise_initiator(prologue=cookie, timestamp=timestamp)
    return Envelope(Mechanism.NOISE, exchange_id, cookie).fragments(0, stepped(context, None))[0], context


def only(reply: Reply) -> Message:
    """Return the one message of a reply."""
    (datagram,) = reply.datagrams
    return tokens.decode(datagram)
