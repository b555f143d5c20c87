"""
Packets that are sealed and authenticated with the true keys, and whose content is a mutant.

The peer may be hostile, or broken: nothing raises, nothing comes through that the policy does not allow, and
the session goes on.
"""

from collections import Counter
from collections.abc import Callable
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import TRAIN_FIELDS, NextHeader
from rvpn.datapath.offload import TCP
from rvpn.esp.codec import TRAILERS, sealed_size
from rvpn.session.session_control import Kind, Status
from rvpn.session.sessions import SAPair
from tests.fuzz.hostile import control, seal, trailed
from tests.fuzz.mutation import Mutator
from tests.fuzz.scene import (
    BACK,
    GROWTH,
    INNER_6,
    THERE,
    Memory,
    Scene,
    check_agenda,
    inner_packets,
    ipv4,
    report,
)
from tests.unit.simulation import INNER

#: From each end.
MUTANTS = 5000
#: Bytes of payload in a segment of a train.
SLICE = 60
#: What a client and a gateway answer, and with what (DESIGN 6).
DRAWN = {
    True: {Kind.CHALLENGE: {Kind.RESPONSE}, Kind.STATUS: {Kind.ACK}, Kind.OWNER: {Kind.CLAIM}},
    False: {Kind.CHALLENGE: {Kind.RESPONSE}, Kind.HEARTBEAT: {Kind.ANSWER}, Kind.CLAIM: {Kind.ACK}},
}


Hear = Callable[[bytes, list[bytes], bool], None]


class AuthenticatedTests(SynchronousTestCase):
    """What comes out of a true envelope."""

    def setUp(self) -> None:
        """Make a session, over which either end may send packets of the client's addresses."""
        self.scene = Scene()
        self.scene.ping()
        client, gateway = self.scene.client, self.scene.gateway
        self.scene.expected = dict.fromkeys((client.endpoint, gateway.endpoint), (INNER, INNER_6))
        self.keys = self.scene.sending()
        self.ends = self.scene.ends()

    def attack(
        self,
        make: Callable[[SAPair], bytes],
        hear: Hear = lambda *_: None,
        size: int = 0,
        times: int = MUTANTS,
    ) -> int:
        """
        Feed what `make` makes with the keys of either end to the other, so many `times` and `size` bytes of
        it in each datagram (0: all), and let `hear` have the replies.

        Returns the number of replies.
        """
        scene, replies = self.scene, 0
        with Memory() as memory:
            for number in range(times):
                for pair, sender, receiver in self.ends:
                    packet = make(pair)
                    drawn = [send.datagram for send in scene.feed(receiver, packet, sender.endpoint, size)]
                    hear(packet, drawn, pair.initiator)
                    replies += len(drawn)
                if number % 50 == 0:
                    for host in scene.hosts:
                        check_agenda(scene, host)
                    scene.run(0.001)
                    scene.forget()
                if number == times // 10:
                    memory.begin()
            growth = memory.growth()
        report(self, f"{times} from each end", growth)
        self.assertLessEqual(growth, GROWTH)
        self.assertTrue(scene.ping())
        self.assertEqual(scene.sending(), self.keys)
        return replies

    def test_esp(self) -> None:
        """Mutated inner packets, padding and next headers; only a dummy packet may draw something."""
        mutator = Mutator(Random(4))
        packets = {pair: inner_packets(to_target=pair.initiator) for pair in self.keys}

        def make(pair: SAPair) -> bytes:
            plaintext = trailed(mutator.random, mutator.packet(packets[pair]))
            sequence = next_sequence(mutator.random, pair.outbound.packets)
            pair.outbound.packets = max(pair.outbound.packets, sequence)
            return seal(pair, plaintext, sequence)

        self.assertLess(self.attack(make), MUTANTS / 10)
        for _, _, receiver in self.ends:
            (session,) = receiver.node.cache
            self.assertGreater(session.packets_in, MUTANTS / 4)

    def test_trains(self) -> None:
        """Trains whose segments are mutants, forged, missing or repeated draw no more than a dummy does."""
        random, size = Random(6), sealed_size(SLICE + 40 + TRAIN_FIELDS)

        def make(pair: SAPair) -> bytes:
            first, ends = pair.outbound.packets + 1, THERE if pair.initiator else BACK
            tcp = bytes(12) + b"\x50\x10" + bytes(6)
            headers = ipv4(ends, TCP, tcp + bytes(SLICE * random.choice((1, 4, 5, 6))))[:40]
            plain = random.randbytes(SLICE) + headers + SLICE.to_bytes(2) + bytes((40, first & 0xFF))
            plain += TRAILERS[NextHeader.TRAIN][len(plain) & 3]
            pair.outbound.packets += 5
            packets = []
            for number in (
                random.choices(range(5), k=2) + list(range(5)) if random.random() < 0.3 else range(5)
            ):
                mutant = bytearray(plain)
                if random.random() < 0.1:
                    mutant[random.choice((-1, random.randrange(SLICE, len(mutant))))] = random.randrange(256)
                packet = bytearray(seal(pair, bytes(mutant), first + number))
                packet[random.randrange(size)] ^= random.random() < 0.1
                packets.append(bytes(packet))
            if random.random() < 0.2:
                del packets[random.randrange(5)]
            return b"".join(packets)

        self.assertLess(self.attack(make, size=size, times=MUTANTS // 4), MUTANTS / 10)
        for _, _, receiver in self.ends:
            (session,) = receiver.node.cache
            self.assertGreater(session.packets_in, MUTANTS / 2)

    def test_control(self) -> None:
        """
        Session control packets of all kinds but `close`, with any status and any numbers, draw at most one
        packet of their size, and only those that ask for something (DESIGN 6).
        """
        random, kinds = Random(5), [kind for kind in range(11) if kind != Kind.CLOSE]
        drawn: Counter[tuple[bool, int, int]] = Counter()

        def make(pair: SAPair) -> bytes:
            sequence = next_sequence(random, pair.control.sequence)
            pair.control.sequence = max(pair.control.sequence, sequence)
            number = random.choice((0, 1, random.randrange(1 << 64), (1 << 64) - 1))
            status, reserved = random.randrange(len(Status) + 1), random.choice((0, 0, 0, 1))
            return control(pair, random.choice(kinds), sequence, status, reserved, number)

        def hear(packet: bytes, replies: list[bytes], by_client: bool) -> None:
            self.assertLessEqual([len(reply) for reply in replies], [len(packet)])
            drawn.update((not by_client, packet[4], reply[4]) for reply in replies)

        self.assertLess(self.attack(make, hear), 2 * MUTANTS * 3 / len(kinds))
        expected = {
            (client, kind, answer) for client in DRAWN for kind, by in DRAWN[client].items() for answer in by
        }
        self.assertEqual(set(drawn), expected)


def next_sequence(random: Random, last: int) -> int:
    """Return the next sequence number, or one after a gap, or one of before."""
    chosen = random.random()
    if chosen < 0.1:
        return random.randrange(last + 1)
    return last + (1 if chosen < 0.8 else random.randrange(1, 65))
