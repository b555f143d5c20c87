"""
The codecs by themselves, and the transport of long tokens, which no mechanism of a node needs yet: whatever
they read, they raise nothing but `RemoteError`.
"""

import contextlib
from collections.abc import Callable
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import TransformID
from rvpn.datapath.packet import inspect, too_big, unreachable
from rvpn.errors import RemoteError
from rvpn.esp.codec import length_of
from rvpn.interfaces import Parameters
from rvpn.keyexchange import parameters, tokens
from rvpn.keyexchange.acceptor import HALF_OPEN_TIME
from rvpn.session import session_control
from tests.fuzz.mutation import Exchange, Family, Live, Mutator
from tests.fuzz.scene import GROWTH, INNER_6, Memory, Scene, inner_packets, record, report
from tests.unit.keyexchange_ends import EXCHANGE_ID, PATH, Network, chatty
from tests.unit.simulation import INNER, TARGET

MUTANTS = 10000
CONTROL_KEY = bytes(32)


class CodecTests(SynchronousTestCase):
    """Functions that read bytes: of their mutants some have to pass, and some to fail."""

    def setUp(self) -> None:
        """Seed the mutator."""
        self.mutator = Mutator(Random(9))

    def read(self, read: Callable[[bytes], object], mutant: Callable[[], bytes]) -> None:
        """Let a function read mutants."""
        failed = 0
        for _ in range(MUTANTS):
            try:
                read(mutant())
            except RemoteError:
                failed += 1
        self.assertTrue(MUTANTS / 20 < failed < MUTANTS * 19 / 20, failed)

    def test_key_exchange(self) -> None:
        """Key exchange datagrams."""
        network = exchange_of_long_tokens()
        recordings, live = network.to_acceptor + network.to_initiator, Live((), ())
        self.read(tokens.decode, lambda: self.mutator.datagram(Family.KEY_EXCHANGE, recordings, live))

    def test_parameters(self) -> None:
        """What is in the authenticated part of a key exchange."""
        offer = Parameters(0x1000, tuple(TransformID), (INNER, INNER_6), 7200.0)
        refusal = Parameters(0x1000, (), refusal="no")
        encoded = [parameters.encode(offer, parameters.INITIATOR_LENGTH), parameters.encode(refusal)]
        self.read(parameters.decode, lambda: self.mutator.parameters(self.mutator.random.choice(encoded)))

    def test_control(self) -> None:
        """Session control packets, half of them with a true tag."""
        scene = Scene()
        scene.ping()
        recordings = record(scene)[Family.CONTROL]

        def mutant() -> bytes:
            data = self.mutator.datagram(Family.CONTROL, recordings, Live((0x1000,), ()))
            body = data[: -session_control._TAG_SIZE]
            tag = session_control._tag(body, CONTROL_KEY)
            return body + tag if self.mutator.random.random() < 0.5 else data

        self.read(lambda data: session_control.decode(data, CONTROL_KEY), mutant)

    def test_packets(self) -> None:
        """Inner packets, and the ICMP errors about them."""
        packets = inner_packets(to_target=True)

        def read(data: bytes) -> None:
            headers = inspect(memoryview(data))
            for error in (
                too_big(memoryview(data), 1280, headers.destination),
                unreachable(memoryview(data), TARGET.packed),
            ):
                self.assertTrue(error is None or len(inspect(memoryview(error))) == len(headers))

        self.read(read, lambda: self.mutator.packet(packets))

    def test_trailers(self) -> None:
        """The ends of opened ESP packets."""

        def mutant() -> bytes:
            random = self.mutator.random
            length = random.randrange(256)
            padding = bytes(range(1, length + 1))
            data = bytes(random.randrange(100)) + padding + bytes((length, 4))
            return data if random.random() < 0.5 else self.mutator.change(data, [data]).ljust(4, b"\0")

        self.read(length_of, mutant)


def exchange_of_long_tokens() -> Network:
    """Return a finished key exchange in four tokens of 4 KiB."""
    network = chatty((4096,) * 4)
    network.run(5.0)
    return network


class TransportTests(SynchronousTestCase):
    """Fragments and acknowledgements from somebody who knows the exchange and its cookie."""

    def test_long_tokens(self) -> None:
        """In the middle of an exchange both ends stand them, and keep nothing of them in the end."""
        mutator = Mutator(Random(10))
        finished = exchange_of_long_tokens()
        recordings = finished.to_acceptor + finished.to_initiator
        with Memory() as memory:
            for number in range(MUTANTS):
                if number % 50 == 0:
                    network = self.begun(1 + number // 50 % 3)
                    cookie = network.exchange._attempts[1].cookie
                if number == MUTANTS // 10:
                    memory.begin()
                live = Live((), [Exchange(EXCHANGE_ID, cookie)])
                mutant = mutator.datagram(Family.KEY_EXCHANGE, recordings, live)
                mutant = mutant[:6] + bytes([network.exchange.mechanism]) + mutant[7:]
                with contextlib.suppress(RemoteError):
                    network.exchange.receive(tokens.decode(mutant), network.now)
                with contextlib.suppress(RemoteError):
                    network.acceptor.receive(tokens.decode(mutant), PATH, network.now)
                network.agenda.advance(network.now)
            network.agenda.advance(network.now + HALF_OPEN_TIME)
            self.assertEqual((len(network.acceptor), len(network.agenda)), (0, 0))
            growth = memory.growth()
        report(self, f"{MUTANTS} mutants", growth)
        self.assertLessEqual(growth, GROWTH)

    def begun(self, round_trips: int) -> Network:
        """Return an exchange that has come so far."""
        network = chatty((4096,) * 4)
        network.run(0.005 + 0.02 * round_trips)
        return network
