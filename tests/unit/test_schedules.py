"""
Random faults, seeded: whatever happened, once the last fault has healed the clients are connected again, and
faults that stay do not matter as long as one gateway is well.

Each schedule is a simulation of clients, three gateways, their LAN and a network that loses, delays, reorders
and repeats. All the while no packet comes to somebody it was not for, and no nonce is used twice.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from itertools import count
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import rvpn.session.sessions
from rvpn.constants import EXCHANGE_TIME, HeartbeatMode, TransformID
from rvpn.esp.codec import Slots
from rvpn.esp.sa import OutboundSA
from rvpn.interfaces import Endpoint
from tests.unit.simulation import INNERS, TARGET, Host, Network, udp_packet

SCHEDULES, GATEWAYS = 200, 3
#: Seconds in which faults begin, the longest of them, and between two packets of a client.
FAULTS_FOR, LONGEST_FAULT, EVERY = 12.0, 8.0, 0.4
#: Seconds that the requirement adds to the bound and an exchange with each gateway: R3's longest back-off.
PATIENCE = 8.0

#: What may break, as often as it stands here.
FAULTS = (
    *("kill", "kill", "restart", "freeze", "freeze", "cut", "cut", "deaf", "mute", "lan", "lan", "drain"),
    *("client", "rebind", "loss", "close", "change"),
)
#: What may stay broken at a gateway, as long as another is well, and how often it does.
STAYING = {"kill", "freeze", "cut", "deaf", "mute", "lan", "drain"}
STAYS = 0.4

Undo = Callable[[], None]


class NonceRecorder:
    """Which nonces were used under which key."""

    def __init__(self) -> None:
        self.used: set[tuple[bytes, bytes]] = set()
        self.repeated = 0

    def record(self, key: bytes, iv: bytes | bytearray | memoryview) -> None:
        """Take note of a packet's IV."""
        nonce = key, bytes(iv)
        self.repeated += nonce in self.used
        self.used.add(nonce)

    def sa(self) -> type[OutboundSA]:
        """Return an outbound SA that records."""
        recorder = self

        class RecordingSA(OutboundSA):
            """See `NonceRecorder`; a nonce is the salt and the IV that stands in the packet."""

            def __init__(self, spi: int, transform: TransformID, key: bytes, salt: bytes) -> None:
                super().__init__(spi, transform, key, salt)
                self.key = key + salt

            def seal_run(
                self, numbers: Iterable[int], plaintexts: Iterable[bytes], buffer: bytearray, slots: Slots
            ) -> None:
                spent = list(numbers)
                super().seal_run(spent, plaintexts, buffer, slots)
                for start in slots.starts[: len(spent)]:
                    recorder.record(self.key, buffer[start + 8 : start + 16])

            def seal_one(self, plaintext: bytes, slot: memoryview) -> None:
                super().seal_one(plaintext, slot)
                recorder.record(self.key, slot[8:16])

        return RecordingSA


class Schedule:
    """One seeded run: the network, its faults, and what the clients sent and got."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.defer, self.response = random.choice([(0.2, 0.1), (0.5, 0.25), (0.1, 0.2)])
        self.mode = random.choice([HeartbeatMode.INSTANT, HeartbeatMode.INSTANT, HeartbeatMode.DEFERRED])
        self.loss, self.spread = random.choice([0.0, 0.02, 0.1]), random.choice([0.0, 0.005, 0.05])
        self.rough = False
        self.network = Network(
            GATEWAYS,
            seed=seed,
            clients=1 + (seed % 4 == 0),
            heartbeat=self.mode,
            heartbeat_defer_time=self.defer,
            heartbeat_response_time=self.response,
            standby=random.randrange(GATEWAYS),
            failback=random.random() < 0.5,
            failback_hold_down=3.0,
            key_lifetime=random.choice([5.0, 7200.0]),
            literal_heartbeats=random.random() < 0.2,
        )
        self.network.echo = True
        self.network.wire = self.wire
        self.sent: list[set[bytes]] = [set() for _ in self.network.clients]
        self.number = 0
        self.story: list[str] = []
        self.start = self.network.now
        self.well = random.choice(self.network.gateways)
        self.events: list[tuple[float, int, Undo]] = []
        self.numbers = count()

    @property
    def bound(self) -> float:
        """Seconds after the last fault until a client must be connected."""
        return self.defer + 2 * self.response + GATEWAYS * EXCHANGE_TIME + PATIENCE

    def wire(self, _datagram: bytes, _source: Endpoint, _destination: Endpoint) -> Iterator[float]:
        """Lose, delay, reorder and repeat datagrams while faults go on."""
        if not self.rough:
            yield 0.001
            return
        if self.random.random() < self.loss:
            return
        yield 0.001 + self.spread * self.random.random()
        if self.random.random() < 0.05:
            yield 0.002 + self.spread * self.random.random()

    # --- faults -------------------------------------------------------------------------------------------

    def at(self, when: float, act: Undo) -> None:
        """Do something so many seconds after the start."""
        heapq.heappush(self.events, (self.start + when, next(self.numbers), act))

    def begin_fault(self, heals: float) -> None:
        """Break something, at one gateway or at all, to be mended at `heals` or never."""
        everywhere = self.random.random() < 0.15
        gateways = self.network.gateways if everywhere else [self.random.choice(self.network.gateways)]
        client = self.random.choice(self.network.clients)
        name = self.random.choice(FAULTS)
        where = "everywhere" if everywhere else gateways[0].endpoint
        fault: Callable[[Host[Any], Host[Any]], Undo] = getattr(self, f"_{name}")
        stays = self.random.random() < STAYS and name in STAYING and self.well not in gateways
        until = "for good" if stays else f"until {heals:.2f}"
        self.story.append(f"{self.network.now - self.start:.2f} {name} {where} {client.endpoint} {until}")
        for gateway in gateways:
            undo = fault(gateway, client)
            if not stays:
                self.at(heals, undo)

    def _kill(self, gateway: Host[Any], _client: Host[Any]) -> Undo:
        gateway.alive = False
        gateway.refuses = self.random.random() < 0.5
        return lambda: self._start(gateway)

    def _start(self, gateway: Host[Any]) -> None:
        if not gateway.alive:
            self.network.restart(self.network.gateways.index(gateway))

    def _restart(self, gateway: Host[Any], _client: Host[Any]) -> Undo:
        self.network.restart(self.network.gateways.index(gateway))
        return lambda: None

    def _freeze(self, gateway: Host[Any], _client: Host[Any]) -> Undo:
        gateway.frozen = True

        def thaw() -> None:
            if gateway.frozen:
                self.network.thaw(gateway)

        return thaw

    def _client(self, _gateway: Host[Any], client: Host[Any]) -> Undo:
        """Freeze the client."""
        return self._freeze(client, client)

    def _cut_ways(self, *ways: tuple[Endpoint, Endpoint]) -> Undo:
        self.network.cuts |= set(ways)

        def mend() -> None:
            self.network.cuts -= set(ways)

        return mend

    def _cut(self, gateway: Host[Any], client: Host[Any]) -> Undo:
        there = client.endpoint, gateway.endpoint
        return self._cut_ways(there, there[::-1])

    def _deaf(self, gateway: Host[Any], client: Host[Any]) -> Undo:
        return self._cut_ways((client.endpoint, gateway.endpoint))

    def _mute(self, gateway: Host[Any], client: Host[Any]) -> Undo:
        return self._cut_ways((gateway.endpoint, client.endpoint))

    def _lan(self, gateway: Host[Any], _client: Host[Any]) -> Undo:
        self.network.lan(gateway, up=False)
        return lambda: self.network.lan(gateway, up=True)

    def _drain(self, gateway: Host[Any], _client: Host[Any]) -> Undo:
        def drain(draining: bool) -> None:
            self.network.act(gateway, gateway.node.drain(draining, self.network.now))

        if gateway.works:
            drain(True)
        return lambda: drain(False)

    def _rebind(self, _gateway: Host[Any], client: Host[Any]) -> Undo:
        client.endpoint = client.endpoint._replace(port=self.random.randrange(1024, 65536))
        return lambda: None

    def _loss(self, _gateway: Host[Any], _client: Host[Any]) -> Undo:
        before, self.loss = self.loss, 0.5

        def mend() -> None:
            self.loss = min(before, self.loss)

        return mend

    def _close(self, gateway: Host[Any], _client: Host[Any]) -> Undo:
        if gateway.works:
            self.network.act(gateway, gateway.node.close(self.network.now))
        return lambda: None

    def _change(self, _gateway: Host[Any], client: Host[Any]) -> Undo:
        """Let the client hear that its network changed."""
        if client.works:
            self.network.act(client, client.node.host_changed(self.network.now))
        return lambda: None

    # --- a run --------------------------------------------------------------------------------------------

    def send(self) -> bytes:
        """Let every client send a packet of its own; return the number in them."""
        self.number += 1
        number = self.number.to_bytes(4)
        for index, client in enumerate(self.network.clients):
            payload = bytes([index]) + number
            self.sent[index].add(payload)
            if client.works:
                self.network.send(client, udp_packet(INNERS[index], TARGET, payload))
        return number

    def run(self) -> float | None:
        """
        Break and mend, and then wait; return how long all clients took to be connected, None if they are not.
        """
        last = FAULTS_FOR + self.random.uniform(0.0, LONGEST_FAULT)
        together = self.random.random() < 0.5
        for _ in range(self.random.randint(3, 14)):
            begins = self.random.uniform(0.5, FAULTS_FOR)
            heals = last if together else begins + self.random.uniform(0.0, LONGEST_FAULT)
            self.at(begins, lambda heals=heals: self.begin_fault(heals))  # type: ignore[misc] # a default
        self.rough = True
        while self.events:
            due, _, act = heapq.heappop(self.events)
            while self.network.now + EVERY < due:
                self.send()
                self.network.run(EVERY)
            self.network.run(max(0.0, due - self.network.now))
            act()
        self.rough = False
        return self.recover()

    def recover(self) -> float | None:
        """Send on until the bound is over; from then on every packet must be answered."""
        healed, connected = self.network.now, None
        while self.network.now < healed + self.bound:
            number = self.send()
            self.network.run(EVERY)
            connected = (connected or self.network.now - healed) if self.answered(number) else None
        for _ in range(3):
            number = self.send()
            self.network.run(EVERY)
            if not self.answered(number):
                return None
        return connected or self.bound

    def answered(self, number: bytes) -> bool:
        """Tell whether every client got the answer to the packet with this number."""
        return all(
            any(packet[28:] == bytes([index]) + number for packet in client.delivered[-3:])
            for index, client in enumerate(self.network.clients)
        )

    # --- what must never happen ----------------------------------------------------------------------------

    def strays(self) -> Iterable[bytes]:
        """Return packets that came to somebody they were not for, or that nobody sent."""
        for host in self.network.gateways:
            for packet in (p for p in host.delivered if p[9] != 1):
                index = INNERS.index(ip_address(packet[12:16]))
                if packet[28:] not in self.sent[index] or packet[16:20] != TARGET.packed:
                    yield packet
        for index, client in enumerate(self.network.clients):
            for packet in (p for p in client.delivered if p[9] != 1):
                if packet[28:] not in self.sent[index] or packet[16:20] != INNERS[index].packed:
                    yield packet


class ScheduleTests(SynchronousTestCase):
    """200 schedules."""

    def test_schedules(self) -> None:
        """Every client is connected in time, no packet goes astray, and no nonce repeats under a key."""
        recorder = NonceRecorder()
        self.patch(rvpn.session.sessions, "OutboundSA", recorder.sa())
        failures = []
        for seed in range(SCHEDULES):
            schedule = Schedule(seed)
            took = schedule.run()
            if took is None:
                failures.append((seed, schedule.mode.value, schedule.story))
            self.assertEqual(list(schedule.strays()), [], seed)
        self.assertEqual(failures, [])
        self.assertEqual(recorder.repeated, 0)
        self.assertGreater(len(recorder.used), 10_000)
