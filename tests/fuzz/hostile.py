"""
Peers that have true keys and mean ill: what they seal and authenticate is correct but for its content.

    seal, trailed, control   packets under the keys of a pair of SAs
    HostileClient            completes key exchanges with a gateway, with any parameters, again and again,
                             claims, strays, and answers calls
    HostileGateway           answers a client's key exchanges, with any parameters or not at all, and calls it

Either keeps the pairs that it got, confirmed or not, and uses them in any order and long after they ended.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import Any

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
from rvpn.interfaces import Endpoint, Initiation, IPAddress, Parameters, Path, PeerIdentity, Send
from rvpn.keyexchange import parameters as codec
from rvpn.keyexchange import tokens
from rvpn.keyexchange.keys import binding
from rvpn.keyexchange.noise import NoiseAcceptor, NoiseInitiator
from rvpn.keyexchange.tai64n import LABEL_SIZE, tai64n
from rvpn.session import session_control
from rvpn.session.literal_heartbeats import LITERAL_SIZE
from rvpn.session.session_control import Kind
from rvpn.session.sessions import SAPair
from tests.fuzz.mutation import Mutator
from tests.fuzz.scene import INNER_6, THERE, THERE_6, Scene, inner_packets, ipv4, ipv6, is_control
from tests.unit.simulation import CONTROL, DELAY, INNER, TARGET, Host, identity

KEY = bytes(range(32))
#: The inner address that the gateway's policy grants to `HostileClient`.
OWN = ip_address("10.99.0.2")
#: Where it is, at any port.
HOME = ip_address("203.0.113.7")
#: What `HostileGateway` proves to have lost keys with.
TOKEN = bytes(range(16))
OTHER = {Role.CLIENT: Role.GATEWAY, Role.GATEWAY: Role.CLIENT}
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


class _Initiator(NoiseInitiator):
    """Says `payload` in its first message: timestamp and encoded parameters."""

    def __init__(self, payload: bytes, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._payload = payload

    def step(self, token: bytes | None) -> bytes | None:
        """See `SecurityContext`."""
        return self._handshake.write_first(self._payload) if token is None else super().step(token)


class _Acceptor(NoiseAcceptor):
    """Answers with any payload."""

    def answer(
        self, token: bytes, choose: Callable[[Parameters], Parameters], encode: Callable[[Parameters], bytes]
    ) -> bytes:
        """Take the first message, choose the answer to its parameters, and return the second message."""
        offer = codec.decode(self._handshake.read_first(token)[LABEL_SIZE:])
        answer = choose(offer)
        token = self._handshake.write_second(encode(answer))
        self._establish(answer, offer)
        return token


def _never(initiation: Initiation) -> Parameters:
    raise NotImplementedError


class Peer:
    """What both do with the pairs that they got, and how they choose what to do."""

    #: How often each step is taken, beside the others.
    weights: Mapping[str, int]
    role: Role

    def __init__(
        self, scene: Scene, victim: Host[Any], endpoint: Endpoint, private_key: bytes, random: Random
    ) -> None:
        self.scene = scene
        self.random = random
        self.mutator = Mutator(random)
        self.endpoint = endpoint
        self.packets: list[bytes] = []
        self.pairs: list[SAPair] = []
        self.handshakes = self.granted = 0
        self._private_key = private_key
        self._victim = victim
        self._said: list[bytes] = []
        self._inbox: list[bytes] = []
        self._challenges: list[tuple[bytes, Endpoint]] = []
        self._contexts: dict[bytes, tuple[bytes, _Initiator]] = {}

    def step(self) -> None:
        """Do one thing."""
        (name,) = self.random.choices(list(self.weights), list(self.weights.values()))
        getattr(self, f"_{name}")()

    def say(self, datagram: bytes, origin: Endpoint | None = None) -> list[Send]:
        """Send a datagram to the victim, and return its replies."""
        self._said = [*self._said[1 - KEPT :], datagram]
        return self.scene.feed(self._victim, datagram, origin or self.endpoint)

    def wire(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> Iterable[float]:
        """Intercept what is for this peer, for `Network.wire`."""
        if not self.is_ours(destination):
            return (DELAY,)
        if datagram[:4] == KEY_EXCHANGE_MARKER:
            if tokens.decode(datagram).to_acceptor and datagram not in self._inbox:
                self.handshakes += 1
                self._inbox = [*self._inbox[-3:], datagram]
        elif is_control(datagram, Kind.CHALLENGE):
            self._challenges = [*self._challenges[1 - KEPT :], (datagram, destination)]
        return ()

    def is_ours(self, endpoint: Endpoint) -> bool:
        """Tell whether this peer receives what is sent there."""
        return endpoint == self.endpoint

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
            random, numbers = self.random, pair.control
            numbers.sequence += random.choice((1, 1, 100))
            reply_to = random.choice((0, 1, numbers.window.highest, random.randrange(1 << 64)))
            kind, status = random.randrange(12), random.choice((0, 0, 0, 1, 2, 3))
            return control(pair, kind, numbers.sequence, status, in_reply_to=reply_to)

        self._use(make)

    def _respond(self) -> None:
        """Answer a challenge from where it went, once or often."""
        if not self._challenges:
            return
        challenge, origin = self.random.choice(self._challenges)
        number = int.from_bytes(challenge[12:20])
        for pair in self.pairs:
            if pair.inbound.spi == session_control.session_spi(challenge):
                for _ in range(self.random.choice((1, 1, 5))):
                    self.say(pair.control.send(Kind.RESPONSE, in_reply_to=number), origin)

    def _close(self) -> None:
        self._use(lambda pair: pair.control.send(Kind.CLOSE))

    def _replay(self) -> None:
        if self._said:
            self.say(self.random.choice(self._said))

    def _wait(self) -> None:
        self.scene.run(self.random.choice(WAITS))

    # --- key exchange -----------------------------------------------------------------------------------

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
            inner_addresses=random.choice(self._inner_addresses()),
            lifetime=random.choice((0.0, 0.001, 1.0, *[KEY_LIFETIME] * 4, 1e15)),
            literal_heartbeats=self.scene.client_policy.literal_heartbeats != (random.random() < 0.02),
            **self._about_us(),
        )
        encoded = codec.encode(offer, codec.INITIATOR_LENGTH if random.random() < 0.8 else 0)
        if random.random() < 0.3:
            encoded = self.mutator.parameters(encoded)
        clock = now if random.random() < 0.8 else now * random.random()
        return _Initiator(
            (tai64n(clock) if random.random() < 0.97 else b"") + encoded,
            private_key=self._private_key,
            peer=self._victim_identity(),
            ephemeral=random.randbytes(32),
            prologue=binding(Mechanism.NOISE, self.role, cookie),
            timestamp=b"",
            parameters=offer,
        )

    def _inner_addresses(self) -> Sequence[tuple[IPAddress, ...]]:
        """Return what this peer asks for."""
        raise NotImplementedError

    def _victim_identity(self) -> PeerIdentity:
        raise NotImplementedError

    def _about_us(self) -> dict[str, Any]:
        """Return what a gateway tells of itself."""
        return {}

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
            private_key=self._private_key,
            ephemeral=self.random.randbytes(32),
            prologue=binding(Mechanism.NOISE, OTHER[self.role], b""),
            authorize=_never,
        )
        token = context.answer(message.data, self._choose, self._encode)
        for datagram in tokens.Envelope(Mechanism.NOISE, message.exchange_id).fragments(1, token):
            self.say(datagram)
        if len(context.own_parameters.transforms) == 1:
            path = Path(self._victim.endpoint)
            self.keep(SAPair(context, initiator=False, path=path, now=self.scene.now))

    def _choose(self, offer: Parameters) -> Parameters:
        answer = Parameters(
            spi=self.random.randrange(MIN_SPI, MAX_SPI),
            transforms=offer.transforms[:1],
            inner_addresses=offer.inner_addresses,
            lifetime=self.random.choice((0.001, 1.0, 1.0, offer.lifetime)),
            literal_heartbeats=offer.literal_heartbeats,
            **self._about_us(),
        )
        wrong: list[dict[str, Any]] = [
            {"transforms": offer.transforms},
            {"inner_addresses": (TARGET,)},
            {"lifetime": 1e15},
            {"refusal": "no"},
            {"literal_heartbeats": True},
        ]
        return replace(answer, **self.random.choice(wrong)) if self.random.random() < 0.1 else answer

    def _encode(self, answer: Parameters) -> bytes:
        encoded = codec.encode(answer)
        return self.mutator.parameters(encoded) if self.random.random() < 0.2 else encoded


class HostileClient(Peer):
    """Has a key of the gateway's policy."""

    role = Role.CLIENT
    weights = {
        "answer": 6,
        "begin": 22,
        "dummy": 14,
        "packet": 20,
        "control": 8,
        "close": 6,
        "replay": 6,
        "wait": 12,
        "traffic": 10,
        "claim": 8,
        "literal": 4,
        "respond": 8,
        "stray": 4,
    }

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, scene.gateway, Endpoint(HOME, 4500), KEY, random)
        self.packets = [ipv4((OWN, TARGET), 17, bytes(length)) for length in (0, 8, 1000)]
        self.packets += inner_packets(to_target=True)
        self._generation = 1
        self._stray()

    def is_ours(self, endpoint: Endpoint) -> bool:
        """See `Peer`."""
        return endpoint.address == HOME

    def _inner_addresses(self) -> Sequence[tuple[IPAddress, ...]]:
        return (*[(OWN,)] * 6, (OWN,) * 8, (INNER,), (OWN, INNER), ())

    def _victim_identity(self) -> PeerIdentity:
        return identity(self.scene.keys[0])

    def _claim(self) -> None:
        """Claim its addresses, mostly anew."""
        self._generation += self.random.choice((1, 1, 0, 1 << 40))
        self._use(lambda pair: pair.control.send(Kind.CLAIM, generation=self._generation))

    def _literal(self) -> None:
        """Send a literal heartbeat, or many."""
        for _ in range(self.random.choice((1, 1, 100))):
            self.say(CONTROL + self.random.randbytes(LITERAL_SIZE - len(CONTROL)))

    def _traffic(self) -> None:
        """Let the gateway have packets for both clients."""
        for inner in (OWN, INNER):
            self.scene.send(self.scene.gateway, ipv4((TARGET, inner), 17, bytes(100)))

    def _stray(self) -> None:
        """Speak from another port from now on."""
        self.endpoint = self.endpoint._replace(port=self.random.choice((4500, 4501, 53)))
        self.scene.expected[self.endpoint] = (OWN,)


class HostileGateway(Peer):
    """
    Has the key of the client's gateway, in whose place it is.

    What the client says to it comes in by `wire`.
    """

    role = Role.GATEWAY
    weights = {
        "answer": 40,
        "begin": 5,
        "notice": 2,
        "dummy": 25,
        "packet": 20,
        "control": 6,
        "close": 8,
        "replay": 6,
        "wait": 14,
        "traffic": 12,
    }

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, scene.client, scene.gateway.endpoint, scene.keys[0], random)
        self.packets = inner_packets(to_target=False)

    def _inner_addresses(self) -> Sequence[tuple[IPAddress, ...]]:
        return (*[(INNER, INNER_6)] * 6, (INNER,), (OWN,), (INNER, OWN), ())

    def _victim_identity(self) -> PeerIdentity:
        return identity(self.scene.client_keys[0])

    def _about_us(self) -> dict[str, Any]:
        return {
            "status": self.random.choice((0, 0, 1, 2)),
            "shortest_defer": self.random.choice((0.0, 0.02, 1e6)),
            "lost_key_token": TOKEN,
        }

    def _notice(self) -> None:
        """Prove that keys are lost."""
        self._use(lambda pair: CONTROL + bytes(4) + pair.inbound.spi.to_bytes(4) + TOKEN)

    def _traffic(self) -> None:
        """Let the client have packets for the gateway."""
        self.scene.send(self.scene.client, ipv4(THERE, 17, bytes(100)))
        self.scene.send(self.scene.client, ipv6(THERE_6, 17, bytes(100)))
