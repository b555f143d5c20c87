"""
Peers that have true keys and mean ill: what they seal and authenticate is correct but for its content.

    seal, trailed, control   packets under the keys of a pair of SAs
    HostileClient            completes key exchanges with a gateway, with any parameters, again and again
    HostileGateway           answers a client's key exchanges, with any parameters or not at all

Either keeps the pairs that it got, confirmed or not, and uses them in any order and long after they ended.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import Any

from rvpn import session_control
from rvpn.constants import (
    CONTROL_SPI,
    KEY_EXCHANGE_MARKER,
    KEY_LIFETIME,
    MAX_SPI,
    MIN_SPI,
    Mechanism,
    NextHeader,
    Role,
    TransformID,
)
from rvpn.esp.codec import AAD_SIZE, HEADER, ICV_SIZE
from rvpn.interfaces import Endpoint, Parameters, Path, Send
from rvpn.keyexchange import parameters as codec
from rvpn.keyexchange import tokens
from rvpn.keyexchange.keys import binding
from rvpn.keyexchange.noise import TIMESTAMP, Initiation, NoiseAcceptor, NoiseInitiator, tai64n
from rvpn.session_control import Kind
from rvpn.sessions import SAPair
from tests.fuzz.mutation import Mutator
from tests.fuzz.scene import THERE, THERE_6, Scene, inner_packets, ipv4, ipv6
from tests.unit.simulation import DELAY, INNER, TARGET, Host, identity

KEY = bytes(range(32))
#: The inner address that the gateway's policy grants to `HostileClient`.
OWN = ip_address("10.99.0.2")
#: Pairs and contexts that a peer keeps, and datagrams that it may say again.
KEPT = 24
WAITS = (*(0.001, 0.01, 0.1, 0.1) * 3, 1.0, 1.0, 11.0)


def seal(pair: SAPair, plaintext: bytes, sequence: int) -> bytes:
    """Return an ESP packet with any plaintext: inner packet, padding and trailer are the caller's."""
    header, sealed = HEADER.pack(pair.outbound.spi, sequence, sequence), bytearray(len(plaintext) + ICV_SIZE)
    nonce = pair.outbound._salt + sequence.to_bytes(8)
    pair.outbound._encrypt_into(nonce, plaintext, header[:AAD_SIZE], sealed)
    return header + sealed


def trailed(random: Random, packet: bytes) -> bytes:
    """Return an inner packet with padding and trailer (RFC 4303 section 2), true ones or not."""
    length = -(len(packet) + 2) % 4 if random.random() < 0.8 else random.randrange(256)
    padding = bytes(range(1, length + 1)) if random.random() < 0.9 else random.randbytes(length)
    if random.random() < 0.05:
        length = random.randrange(256)
    true = NextHeader.IPV6 if packet[:1] >= b"\x60" else NextHeader.IPV4
    next_header = true if random.random() < 0.8 else random.choice((*NextHeader, random.randrange(256)))
    plaintext = packet + padding + bytes((length, next_header))
    return plaintext if random.random() < 0.98 else plaintext[-random.randrange(len(plaintext)) :]


def control(
    pair: SAPair, kind: int, sequence: int, status: int = 0, reserved: int = 0, in_reply_to: int = 0
) -> bytes:
    """Return a session control packet with any content and a true tag."""
    session, generation = pair.control.peer_session, in_reply_to.to_bytes(12)
    body = session_control._BODY.pack(
        CONTROL_SPI, kind, status, reserved, session, sequence, in_reply_to, generation
    )
    return body + session_control._tag(body, pair.control._send_key)


class Peer:
    """What both do with the pairs that they got, and how they choose what to do."""

    #: How often each step is taken, beside the others.
    weights: Mapping[str, int]

    def __init__(self, scene: Scene, victim: Host[Any], endpoint: Endpoint, random: Random) -> None:
        self.scene = scene
        self.random = random
        self.mutator = Mutator(random)
        self.endpoint = endpoint
        self.packets: list[bytes] = []
        self.pairs: list[SAPair] = []
        self.handshakes = self.granted = 0
        self._victim = victim
        self._said: list[bytes] = []

    def step(self) -> None:
        """Do one thing."""
        (name,) = self.random.choices(list(self.weights), list(self.weights.values()))
        getattr(self, f"_{name}")()

    def say(self, datagram: bytes) -> list[Send]:
        """Send a datagram to the victim, and return its replies."""
        self._said = [*self._said[1 - KEPT :], datagram]
        return self.scene.feed(self._victim, datagram, self.endpoint)

    def keep(self, pair: SAPair) -> None:
        """Have one more pair, and lose the oldest."""
        self.pairs = [*self.pairs[1 - KEPT :], pair]
        self.granted += 1

    def _use(self, make: Callable[[SAPair], bytes]) -> None:
        """Say what `make` makes with the newest pair, or with an older one."""
        if self.pairs:
            self.say(make(self.random.choice(self.pairs[-self.random.choice((1, 3, KEPT)) :])))

    def _dummy(self) -> None:
        """Confirm a pair."""
        self._use(lambda pair: pair.outbound.seal(b"", NextHeader.DUMMY))

    def _packet(self) -> None:
        """Send an inner packet, now and then with a sequence number far ahead."""

        def make(pair: SAPair) -> bytes:
            choose = self.mutator.packet if self.random.random() < 0.5 else self.random.choice
            pair.outbound.packets += self.random.choice((1, 1, 1, 1 << 20, 1 << 31))
            pair.outbound.packets %= 1 << 32
            return seal(pair, trailed(self.random, choose(self.packets)), pair.outbound.packets)

        self._use(make)

    def _control(self) -> None:
        """Send a session control packet of any kind."""

        def make(pair: SAPair) -> bytes:
            pair.control.sequence += self.random.choice((1, 1, 100))
            return control(pair, self.random.randrange(12), pair.control.sequence)

        self._use(make)

    def _close(self) -> None:
        self._use(lambda pair: pair.control.send(Kind.CLOSE))

    def _replay(self) -> None:
        if self._said:
            self.say(self.random.choice(self._said))

    def _wait(self) -> None:
        self.scene.run(self.random.choice(WAITS))


class _Initiator(NoiseInitiator):
    """Says `payload` in its first message: timestamp and encoded parameters."""

    def __init__(self, payload: bytes, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._payload = payload

    def step(self, token: bytes | None) -> bytes | None:
        """See `SecurityContext`."""
        return self._handshake.write_first(self._payload) if token is None else super().step(token)


class HostileClient(Peer):
    """Has a key of the gateway's policy."""

    weights = {
        "begin": 22,
        "dummy": 14,
        "packet": 20,
        "control": 8,
        "close": 6,
        "replay": 6,
        "wait": 12,
        "traffic": 10,
        "move": 2,
    }

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, scene.gateway, Endpoint(ip_address("203.0.113.7"), 4500), random)
        self.packets = [ipv4((OWN, TARGET), 17, bytes(length)) for length in (0, 8, 1000)]
        self.packets += inner_packets(to_target=True)
        self._contexts: dict[bytes, tuple[bytes, _Initiator]] = {}
        self._move()

    def _begin(self, exchange_id: bytes = b"", cookie: bytes = b"") -> None:
        """Begin an exchange, or begin it anew with a cookie."""
        self.handshakes += 1
        exchange_id = exchange_id or self.random.randbytes(8)
        context = self._context(cookie)
        self._contexts = dict(list(self._contexts.items())[1 - KEPT :]) | {exchange_id: (cookie, context)}
        token = context.step(None)
        assert token is not None
        for datagram in tokens.Envelope(Mechanism.NOISE, exchange_id, cookie).fragments(0, token):
            for reply in self.say(datagram):
                self._hear(reply.datagram)

    def _context(self, cookie: bytes) -> _Initiator:
        random, now = self.random, self.scene.now
        offer = Parameters(
            spi=random.randrange(MIN_SPI, MAX_SPI),
            transforms=tuple(random.sample(list(TransformID), random.choice((1, 2)))),
            inner_addresses=random.choice((*[(OWN,)] * 6, (OWN,) * 8, (INNER,), (OWN, INNER), ())),
            lifetime=random.choice((0.0, 0.001, 1.0, *[KEY_LIFETIME] * 4, 1e15)),
        )
        encoded = codec.encode(offer, codec.INITIATOR_LENGTH if random.random() < 0.8 else 0)
        if random.random() < 0.3:
            encoded = self.mutator.parameters(encoded)
        clock = now if random.random() < 0.8 else now * random.random()
        return _Initiator(
            (tai64n(clock) if random.random() < 0.97 else b"") + encoded,
            private_key=KEY,
            peer=identity(self.scene.keys[0]),
            ephemeral=random.randbytes(32),
            prologue=binding(Mechanism.NOISE, Role.CLIENT, cookie),
            timestamp=b"",
            parameters=offer,
        )

    def _hear(self, datagram: bytes) -> None:
        """Obey a cookie demand, or take keys."""
        message = tokens.decode(datagram)
        cookie, context = self._contexts[message.exchange_id]
        if isinstance(message, tokens.CookieDemand) and not cookie:
            self._begin(message.exchange_id, message.cookie)
        elif isinstance(message, tokens.Fragment):
            context.step(message.data)
            if not context.peer_parameters.refusal:
                self.keep(SAPair(context, initiator=True, path=Path(self.endpoint), now=self.scene.now))

    def _traffic(self) -> None:
        """Let the gateway have packets for both clients."""
        for inner in (OWN, INNER):
            self.scene.send(self.scene.gateway, ipv4((TARGET, inner), 17, bytes(100)))

    def _move(self) -> None:
        """Change the port."""
        self.endpoint = self.endpoint._replace(port=self.random.choice((4500, 4501, 53)))
        self.scene.expected[self.endpoint] = (OWN,)


class _Acceptor(NoiseAcceptor):
    """Answers with any payload."""

    def answer(
        self, token: bytes, choose: Callable[[Parameters], Parameters], encode: Callable[[Parameters], bytes]
    ) -> bytes:
        """Take the first message, choose the answer to its parameters, and return the second message."""
        offer = codec.decode(self._handshake.read_first(token)[TIMESTAMP:])
        answer = choose(offer)
        token = self._handshake.write_second(encode(answer))
        self._establish(answer, offer)
        return token


def _never(initiation: Initiation) -> Parameters:
    raise NotImplementedError


class HostileGateway(Peer):
    """
    Has the key of the client's gateway, in whose place it is.

    What the client says to it comes in by `wire`, for `Network.wire`.
    """

    weights = {
        "answer": 40,
        "dummy": 25,
        "packet": 20,
        "control": 6,
        "close": 8,
        "replay": 6,
        "wait": 14,
        "traffic": 12,
    }

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, scene.client, scene.gateway.endpoint, random)
        self.packets = inner_packets(to_target=False)
        self._inbox: list[bytes] = []

    def wire(self, datagram: bytes, _source: Endpoint, destination: Endpoint) -> Iterable[float]:
        """Intercept what is for the gateway."""
        if destination != self.endpoint:
            return (DELAY,)
        if datagram[:4] == KEY_EXCHANGE_MARKER and datagram not in self._inbox:
            self.handshakes += 1
            self._inbox = [*self._inbox[-3:], datagram]
        return ()

    def _answer(self) -> None:
        """Answer a first message with keys, a cookie demand or a rejection."""
        if not self._inbox:
            return
        message = tokens.decode(self._inbox.pop(-1 if self.random.random() < 0.8 else 0))
        chosen = self.random.random()
        if not isinstance(message, tokens.Fragment):
            return
        if chosen < 0.04:
            self.say(tokens.demand(message, self.random.randbytes(16)))
        elif chosen < 0.08:
            self.say(tokens.reject(message, self.random.choice(list(tokens.Rejected))))
        elif message.mac == bytes(16):
            self._accept(message)

    def _accept(self, message: tokens.Fragment) -> None:
        context = _Acceptor(
            private_key=self.scene.keys[0],
            ephemeral=self.random.randbytes(32),
            prologue=binding(Mechanism.NOISE, Role.CLIENT, b""),
            authorize=_never,
        )
        token = context.answer(message.data, self._choose, self._encode)
        for datagram in tokens.Envelope(Mechanism.NOISE, message.exchange_id).fragments(1, token):
            self.say(datagram)
        if len(context.own_parameters.transforms) == 1:
            path = Path(self.scene.client.endpoint)
            self.keep(SAPair(context, initiator=False, path=path, now=self.scene.now))

    def _choose(self, offer: Parameters) -> Parameters:
        answer = Parameters(
            spi=self.random.randrange(MIN_SPI, MAX_SPI),
            transforms=offer.transforms[:1],
            inner_addresses=offer.inner_addresses,
            lifetime=self.random.choice((0.001, 1.0, 1.0, offer.lifetime)),
        )
        wrong: list[dict[str, Any]] = [
            {"transforms": offer.transforms},
            {"inner_addresses": (TARGET,)},
            {"lifetime": 1e15},
            {"refusal": "no"},
        ]
        return replace(answer, **self.random.choice(wrong)) if self.random.random() < 0.1 else answer

    def _encode(self, answer: Parameters) -> bytes:
        encoded = codec.encode(answer)
        return self.mutator.parameters(encoded) if self.random.random() < 0.2 else encoded

    def _traffic(self) -> None:
        """Let the client have packets for the gateway."""
        self.scene.send(self.scene.client, ipv4(THERE, 17, bytes(100)))
        self.scene.send(self.scene.client, ipv6(THERE_6, 17, bytes(100)))
