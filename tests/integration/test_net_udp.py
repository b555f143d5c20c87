"""Real UDP sockets in network namespaces: addresses, ICMP errors, path MTU, and how failures are told."""

import errno
import os
import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path as FilePath

from twisted.internet import reactor
from twisted.internet.task import deferLater

from rvpn.constants import CONTROL_SPI, KEY_EXCHANGE_MARKER, NAT_KEEPALIVE
from rvpn.errors import LocalError
from rvpn.interfaces import DatagramBatch, Endpoint, IPAddress, Path, Run
from rvpn.lab.namespaces import inside
from rvpn.net import udp, udpsocket
from rvpn.net.offloads import IN_USE, OFF
from rvpn.net.udp import BATCH_CAPACITY, BYTES_PER_WAKEUP, READS_PER_WAKEUP, UDPPort, UDPPorts
from rvpn.net.udpsocket import PathError, open_socket
from tests.integration.namespaces import Namespace, NamespaceTestCase

ANY4, ANY6, LOCAL4, LOCAL6 = map(ip_address, ("0.0.0.0", "::", "127.0.0.1", "::1"))


class Recorder:
    """Remembers what it receives."""

    def __init__(self) -> None:
        self.datagrams: list[tuple[bytes, Path]] = []
        self.runs: list[Run] = []
        self.wakeups = self.resumptions = 0
        self.errors: list[PathError] = []
        self.failing = False

    def batchReceived(self, batch: DatagramBatch) -> None:
        """Remember the datagrams and their paths."""
        self.wakeups += 1
        self.runs += batch.runs
        self.datagrams += [(bytes(datagram), path) for path, datagram in batch.datagrams()]
        if self.failing:
            raise RuntimeError("not today")

    def sendingResumed(self) -> None:
        """Remember it."""
        self.resumptions += 1

    def pathErrorReceived(self, error: PathError) -> None:
        """Remember the error."""
        self.errors.append(error)
        if self.failing:
            raise RuntimeError("not today either")


class UDPTestCase(NamespaceTestCase):
    """Ports and peers that are closed when the test ends."""

    def setUp(self) -> None:
        super().setUp()
        self.recorder = Recorder()
        self.batch = DatagramBatch(BATCH_CAPACITY)

    def port(
        self,
        address: IPAddress,
        number: int = 0,
        reading: bool = True,
        mark: int | None = None,
        offload: bool = True,
    ) -> UDPPort:
        """Open a port of the recorder."""
        port = UDPPort(
            open_socket(Endpoint(address, number), mark), self.recorder, reactor, self.batch, offload
        )
        self.addCleanup(port.close)
        if reading:
            port.startReading()
        return port

    def peer(self, address: IPAddress, number: int = 0) -> socket.socket:
        """Open a plain socket."""
        peer = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        self.addCleanup(peer.close)
        peer.bind((str(address), number))
        peer.settimeout(2)
        return peer

    def closed_endpoint(self, address: IPAddress) -> Endpoint:
        """Return an endpoint at which nobody listens."""
        peer = self.peer(address)
        endpoint = endpoint_of(peer)
        peer.close()
        return endpoint

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the reactor run until the condition holds."""
        for _ in range(200):
            if condition():
                return
            await deferLater(reactor, 0.01)
        raise AssertionError("it did not happen")


def endpoint_of(peer: socket.socket) -> Endpoint:
    """Return the endpoint of a bound socket."""
    address, number = peer.getsockname()[:2]
    return Endpoint(ip_address(address), number)


def batch_of(path: Path, *datagrams: bytes) -> DatagramBatch:
    """Return a batch to send."""
    content = b"".join(datagrams)
    batch = DatagramBatch(len(content))
    batch.buffer[:] = content
    batch.add(path, len(content), len(datagrams[0]))
    return batch


def send(port: UDPPort, path: Path, *datagrams: bytes) -> int:
    """Send datagrams in one run; return how many were refused."""
    batch = batch_of(path, *datagrams)
    return port.sender.send_run(batch.view, batch.runs[0])


class UDPPortTests(UDPTestCase):
    """One port on the loopback interface."""

    async def answered_from(self, anywhere: IPAddress, spoken_to: IPAddress, peer_address: IPAddress) -> None:
        port = self.port(anywhere)
        peer = self.peer(peer_address)
        peer.sendto(b"question", (str(spoken_to), port.port))
        await self.until(lambda: self.recorder.datagrams)
        ((datagram, path),) = self.recorder.datagrams
        self.assertEqual((datagram, path), (b"question", Path(endpoint_of(peer), spoken_to)))
        self.assertEqual(send(port, path, b"answer"), 0)
        answer, source = peer.recvfrom(100)
        self.assertEqual((answer, source[0]), (b"answer", str(spoken_to)))

    async def test_answers_from_the_address_spoken_to(self) -> None:
        """On a host with several addresses a peer gets its answer from the one that it asked."""
        await self.answered_from(ANY4, ip_address("127.9.9.9"), LOCAL4)

    async def test_answers_from_the_address_spoken_to_ipv6(self) -> None:
        """So over IPv6."""
        self.here.address("lo", "fd00::9/128")
        await self.answered_from(ANY6, ip_address("fd00::9"), LOCAL6)

    def test_paths_in_turns(self) -> None:
        """Each datagram has its own path, whatever came before it; one seen before is the same object."""
        port, peers = self.port(ANY4, reading=False), (self.peer(LOCAL4), self.peer(LOCAL4))
        told = [(peer, local) for local in ("127.0.0.1", "127.9.9.9") for peer in peers for _ in range(2)]
        for peer, local in told * 2:
            peer.sendto(b"x" * (1 + len(local)), (local, port.port))
        port.doRead()
        paths = [path for _, path in self.recorder.datagrams]
        self.assertEqual(paths, [Path(endpoint_of(peer), ip_address(local)) for peer, local in told] * 2)
        self.assertEqual(len(set(map(id, paths))), 4)

    async def survives_port_unreachable(self, address: IPAddress) -> None:
        port, peer = self.port(address), self.peer(address)
        nobody = self.closed_endpoint(address)
        self.assertTrue(port.sender.send(b"to nobody", Path(nobody)))
        await self.until(lambda: self.recorder.errors)
        (error,) = self.recorder.errors
        self.assertEqual(error, PathError(nobody, errno.ECONNREFUSED, address, None, b"to nobody"))
        peer.sendto(b"still there?", (str(address), port.port))
        await self.until(lambda: self.recorder.datagrams)
        self.assertTrue(port.sender.send(b"yes", Path(endpoint_of(peer))))
        self.assertEqual(peer.recv(100), b"yes")

    async def test_port_unreachable(self) -> None:
        """An ICMP error is told with all it says, and ends neither reading nor sending."""
        await self.survives_port_unreachable(LOCAL4)

    async def test_port_unreachable_ipv6(self) -> None:
        """So over IPv6."""
        await self.survives_port_unreachable(LOCAL6)

    async def test_flood_of_errors(self) -> None:
        """More errors than one wake-up reads are all told, and datagrams among them arrive."""
        port, peer = self.port(LOCAL4), self.peer(LOCAL4)
        nobody = Path(self.closed_endpoint(LOCAL4))
        for number in range(3 * READS_PER_WAKEUP):
            port.sender.send(b"%d" % number, nobody)
            peer.sendto(b"%d" % number, ("127.0.0.1", port.port))
        await self.until(lambda: len(self.recorder.errors) == 3 * READS_PER_WAKEUP)
        await self.until(lambda: len(self.recorder.datagrams) == 3 * READS_PER_WAKEUP)

    def test_pending_error_does_not_hit_another_peer(self) -> None:
        """A datagram goes out although the kernel holds an error about an earlier one for the next call."""
        port, peer = self.port(LOCAL4, reading=False), self.peer(LOCAL4)
        port.sender.send(b"to nobody", Path(self.closed_endpoint(LOCAL4)))
        self.assertTrue(port.sender.send(b"to somebody", Path(endpoint_of(peer))))
        self.assertEqual(peer.recv(100), b"to somebody")

    async def test_failing_receiver(self) -> None:
        """Exceptions in the receiver are logged, and the next datagram is delivered."""
        port, peer = self.port(LOCAL4), self.peer(LOCAL4)
        self.recorder.failing = True
        peer.sendto(b"one", ("127.0.0.1", port.port))
        port.sender.send(b"x", Path(self.closed_endpoint(LOCAL4)))
        await self.until(lambda: self.recorder.datagrams and self.recorder.errors)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
        peer.sendto(b"two", ("127.0.0.1", port.port))
        await self.until(lambda: len(self.recorder.datagrams) == 2)
        self.flushLoggedErrors(RuntimeError)

    def test_bounded_reading(self) -> None:
        """One wake-up reads a bounded number of datagrams; the rest waits for the next."""
        port, peer = self.port(LOCAL4, reading=False), self.peer(LOCAL4)
        for _ in range(READS_PER_WAKEUP + 4):
            peer.sendto(b"x", ("127.0.0.1", port.port))
        port.doRead()
        self.assertEqual(len(self.recorder.datagrams), READS_PER_WAKEUP)
        port.doRead()
        self.assertEqual(len(self.recorder.datagrams), READS_PER_WAKEUP + 4)

    def test_run(self) -> None:
        """All datagrams of a run are sent, the last of which may be shorter."""
        port, peer = self.port(LOCAL4), self.peer(LOCAL4)
        self.assertEqual(send(port, Path(endpoint_of(peer), LOCAL4), b"aaaa", b"bbbb", b"cc"), 0)
        self.assertEqual([peer.recv(100) for _ in range(3)], [b"aaaa", b"bbbb", b"cc"])

    def test_no_route(self) -> None:
        """Where the kernel knows no way, `send` says so and raises nothing."""
        port = self.port(ANY4)
        self.assertEqual(send(port, Path(Endpoint(ip_address("192.0.2.1"), 4500)), b"x", b"y"), 2)
        self.assertEqual(port.sender.failure, errno.ENETUNREACH)

    def test_too_long(self) -> None:
        """A datagram that no IP packet holds is refused, and raises nothing."""
        port, peer = self.port(LOCAL4), self.peer(LOCAL4)
        self.assertFalse(port.sender.send(bytes(65535), Path(endpoint_of(peer))))
        self.assertEqual(port.sender.failure, errno.EMSGSIZE)

    def test_local_address_gone(self) -> None:
        """A path from an address that is no longer ours fails, and raises nothing."""
        peer = self.peer(LOCAL6)
        self.assertFalse(self.port(ANY6).sender.send(b"x", Path(endpoint_of(peer), ip_address("fd00::9"))))

    def test_mark(self) -> None:
        """The socket carries the mark by which the host's rules know it."""
        port = self.port(ANY4, mark=0x7276)
        self.assertEqual(port._socket.getsockopt(socket.SOL_SOCKET, socket.SO_MARK), 0x7276)

    def test_in_use(self) -> None:
        """A port that another socket has is refused in one line that names it."""
        number = self.port(LOCAL4).port
        error = self.assertRaises(LocalError, self.port, LOCAL4, number)
        self.assertEqual(str(error), f"cannot listen on UDP 127.0.0.1:{number}: another program uses it")

    def test_not_our_address(self) -> None:
        """An address that no interface has is refused in one line that names it."""
        error = self.assertRaises(LocalError, self.port, ip_address("192.0.2.1"))
        self.assertIn("192.0.2.1:0: no interface has this address", str(error))

    def test_closed(self) -> None:
        """`close` frees the port, and may come twice."""
        port = self.port(LOCAL4)
        port.close()
        port.close()
        self.port(LOCAL4, port.port)

    def test_receiver_that_closes(self) -> None:
        """A receiver may close the port while it reads."""
        port, peer = self.port(LOCAL4), self.peer(LOCAL4)
        self.recorder.batchReceived = lambda batch: port.close()  # type: ignore[method-assign]
        for _ in range(2):
            peer.sendto(b"x", ("127.0.0.1", port.port))
        port.doRead()


class OffloadTests(UDPTestCase):
    """Runs of datagrams through one call, where the kernel takes them and where it does not."""

    content = (*(bytes([number]) * 1000 for number in range(40)), b"last")

    async def exchanged(self, sender: UDPPort, receiver: UDPPort) -> list[Run]:
        """Send a run from one port to the other; return the runs in which it arrived whole and in order."""
        path = Path(Endpoint(receiver.address, receiver.port))
        self.assertEqual(send(sender, path, *self.content), 0)
        await self.until(lambda: len(self.recorder.datagrams) >= len(self.content))
        here = Path(Endpoint(sender.address, sender.port), receiver.address)
        self.assertEqual(self.recorder.datagrams, [(datagram, here) for datagram in self.content])
        return self.recorder.runs

    async def test_whole(self) -> None:
        """A run arrives as one, with its size, its source and our address; over IPv4 and IPv6."""
        for address in LOCAL4, LOCAL6:
            (run,) = await self.exchanged(self.port(address), self.port(address))
            self.assertEqual((run.end - run.start, run.size), (40_004, 1000))
            self.recorder.datagrams.clear()
            self.recorder.runs.clear()

    async def test_sender_without(self) -> None:
        """What is sent one by one makes the same runs at the receiver."""
        sender = self.port(LOCAL4, offload=False)
        self.assertEqual(sender.offloads, {"UDP_SEGMENT": OFF, "UDP_GRO": OFF})
        runs = await self.exchanged(sender, self.port(LOCAL4))
        self.assertLessEqual(len(runs), 2)  # if it woke up in the middle

    async def test_receiver_without(self) -> None:
        """What is sent as a run comes one by one where the receiver wants no offload, and is joined here."""
        (run,) = await self.exchanged(self.port(LOCAL4), self.port(LOCAL4, offload=False))
        self.assertEqual((run.end - run.start, run.size), (40_004, 1000))

    async def test_kernel_that_cannot(self) -> None:
        """A run that the kernel does not cut goes one by one."""
        sender = self.port(LOCAL4)
        self.assertEqual(sender.offloads, {"UDP_SEGMENT": IN_USE, "UDP_GRO": IN_USE})
        sender._socket.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        await self.exchanged(sender, self.port(LOCAL4))
        self.assertEqual(sender.sender.refusals, {"run EINVAL": 1})

    async def test_longer_than_the_link_carries(self) -> None:
        """Datagrams that must be fragmented cannot be cut from a run, and arrive all the same."""
        with self.here.kernel() as kernel:
            kernel.link("set", index=1, mtu=900)
        sender = self.port(LOCAL4)
        await self.exchanged(sender, self.port(LOCAL4))
        (refusal,) = sender.sender.refusals.items()
        self.assertIn(refusal, [("run EMSGSIZE", 1), ("run EINVAL", 1)])  # after Linux 6.9, and before

    async def test_runs_are_made_of_what_belongs_together(self) -> None:
        """Datagrams that come one by one are a run as long as path and size stay the same."""
        port, peers = self.port(LOCAL4, reading=False, offload=False), [self.peer(LOCAL4) for _ in range(2)]
        sizes = [(0, 10), (0, 10), (0, 5), (0, 10), (0, 11), (1, 11), (1, 0), (1, 11), (0, 11)]
        for peer, size in sizes:
            peers[peer].sendto(bytes(size), ("127.0.0.1", port.port))
        port.doRead()
        self.assertEqual(
            [(run.end - run.start, run.size) for run in self.recorder.runs],
            [(25, 10), (10, 10), (11, 11), (22, 11), (11, 11)],
        )

    async def test_single_ones_behind_a_run(self) -> None:
        """Datagrams that come one by one behind a run of the same size and path arrive as they were sent."""
        port, sender = self.port(LOCAL4, reading=False), self.port(LOCAL4)
        path = Path(Endpoint(LOCAL4, port.port))
        sent = [bytes([number]) * 100 for number in range(8)]
        send(sender, path, *sent[:4])
        for datagram in sent[4:]:
            send(sender, path, datagram)
        port.doRead()
        self.assertEqual([datagram for datagram, _ in self.recorder.datagrams], sent)

    async def test_many_in_one_wakeup(self) -> None:
        """One wake-up brings several runs, but not more than its bound."""
        port, sender = self.port(LOCAL4, reading=False), self.port(LOCAL4)
        runs = 2 * BYTES_PER_WAKEUP // 40_000
        for _ in range(runs):
            send(sender, Path(Endpoint(LOCAL4, port.port)), *self.content)
        port.doRead()
        self.assertEqual(self.recorder.wakeups, 1)
        self.assertLess(BYTES_PER_WAKEUP, sum(run.end - run.start for run in self.recorder.runs))
        self.assertLess(len(self.recorder.runs), runs)

    async def test_errors_about_a_run(self) -> None:
        """An ICMP error about a run quotes its first datagram, and costs the next run nothing."""
        port = self.port(LOCAL4)
        nobody = self.closed_endpoint(LOCAL4)
        send(port, Path(nobody), *self.content)
        await self.until(lambda: self.recorder.errors)
        self.assertEqual(self.recorder.errors[0].errno, errno.ECONNREFUSED)
        self.assertTrue(self.content[0].startswith(self.recorder.errors[0].quote))
        send(port, Path(nobody), *self.content)  # leaves an error for the next call
        await self.exchanged(port, self.port(LOCAL4))


class FullTests(UDPTestCase):
    """A link that carries 80 Mbit/s, and 4 MB to send at once."""

    datagrams = tuple(number.to_bytes(4) * 250 for number in range(4000))

    def setUp(self) -> None:
        super().setUp()
        # A veth pair has a queue on each core, and so keeps the order of one core's datagrams alone.
        cores = os.sched_getaffinity(0)
        self.addCleanup(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, {min(cores)})
        self.far = Namespace(self)
        self.here.connect("outside", self.far, "outside")
        self.here.address("outside", "192.0.2.1/24")
        self.far.address("outside", "192.0.2.2/24")
        with inside(self.far.descriptor):
            self.receiver = self.peer(ip_address("192.0.2.2"))
        self.receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
        self.path = Path(endpoint_of(self.receiver))
        self.batches = [
            batch_of(self.path, *self.datagrams[start : start + 50])
            for start in range(0, len(self.datagrams), 50)
        ]

    def narrow(self, queue: int) -> None:
        """Let the link hold back `queue` bytes, and carry 80 Mbit/s."""
        with self.here.kernel() as kernel:
            (index,) = kernel.link_lookup(ifname="outside")
            kernel.tc(
                "add", "tbf", index=index, handle=0x10000, rate=80_000_000 // 8, burst=70_000, limit=queue
            )

    def ports(self, offload: bool = True) -> UDPPorts:
        """Return one port, and send on whenever there is room."""
        ports = UDPPorts([ANY4], lambda address: self.port(address, reading=False, offload=offload))
        self.addCleanup(ports.close)
        ports.startReading()
        self.recorder.sendingResumed = lambda: self.go_on(ports)  # type: ignore[method-assign]
        return ports

    def go_on(self, ports: UDPPorts) -> None:
        """Send until a socket is full."""
        self.recorder.resumptions += 1
        while self.batches:
            self.assertEqual(ports.send(self.batches[0]), 0)
            if self.batches[0].runs:
                return
            del self.batches[0]

    async def test_control_overtakes(self) -> None:
        """Heartbeats are sent before what waits in the card's queue, if that knows priorities."""
        self.narrow(queue=1 << 24)
        with self.here.kernel() as kernel:
            (index,) = kernel.link_lookup(ifname="outside")
            kernel.tc("add", "pfifo_fast", index=index, handle=0x20000, parent=0x10001)
        ports = self.ports()
        self.go_on(ports)
        sent = (len(self.datagrams) // 50 - len(self.batches)) * 50
        ports.sendDatagram(b"heartbeat", self.path)
        await self.until(lambda: not self.batches)
        place = [self.receiver.recv(2000) for _ in self.datagrams].index(b"heartbeat")
        self.assertLess(place, sent / 2)

    async def all_arrive(self, ports: UDPPorts) -> None:
        self.go_on(ports)
        self.assertNotEqual(self.batches, [], "the link is not narrow")
        self.assertTrue(ports.sendDatagram(b"heartbeat", self.path))
        await self.until(lambda: not self.batches)
        received: list[bytes] = []
        while len(received) < len(self.datagrams) + 1:
            received.append(self.receiver.recv(2000))
        place = received.index(b"heartbeat")
        del received[place]
        self.assertEqual(received, [*self.datagrams])
        self.assertLess(place, len(self.datagrams) - 50, "the heartbeat did not go first")
        refusals = ports.refusals
        self.assertGreater(refusals["socket full"], 1)
        self.assertEqual(refusals.keys(), {"socket full"})

    def port_with_small_buffer(self, offload: bool) -> UDPPorts:
        """Return a port whose socket holds little."""
        ports = self.ports(offload)
        ports.ports[0]._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return ports

    async def test_full_socket(self) -> None:
        """What a socket with a tiny buffer cannot take waits: nothing is lost, and heartbeats go first."""
        self.narrow(queue=1 << 24)
        await self.all_arrive(self.port_with_small_buffer(offload=True))

    async def test_full_socket_one_by_one(self) -> None:
        """So without offloads."""
        self.narrow(queue=1 << 24)
        await self.all_arrive(self.port_with_small_buffer(offload=False))

    async def test_full_queue(self) -> None:
        """A card's full queue does not tell when it has room: it is tried again, and nothing is lost."""
        self.narrow(queue=200_000)
        await self.all_arrive(self.ports())

    async def test_full_queue_one_by_one(self) -> None:
        """So without offloads."""
        self.narrow(queue=200_000)
        await self.all_arrive(self.ports(offload=False))


class PathMTUTests(UDPTestCase):
    """Two hosts with a router between; the second hop carries 1300 bytes, which the sender does not know."""

    def setUp(self) -> None:
        super().setUp()
        router, self.far = Namespace(self), Namespace(self)
        self.here.connect("outside", router, "near")
        router.connect("far", self.far, "outside", mtu=1300)
        self.here.address("outside", "192.0.2.1/24", "2001:db8::1/64")
        router.address("near", "192.0.2.254/24", "2001:db8::254/64")
        router.address("far", "198.51.100.254/24", "2001:db8:1::254/64")
        self.far.address("outside", "198.51.100.1/24", "2001:db8:1::1/64")
        for end, gateways in (
            (self.here, ("192.0.2.254", "2001:db8::254")),
            (self.far, ("198.51.100.254", "2001:db8:1::254")),
        ):
            end.route("0.0.0.0/0", gateways[0])
            end.route("::/0", gateways[1])
        router.sysctl("ipv4/ip_forward", "1")
        router.sysctl("ipv6/conf/all/forwarding", "1")

    async def learns(self, anywhere: IPAddress, router: str, far: str) -> None:
        port = self.port(anywhere)
        with inside(self.far.descriptor):
            peer = self.peer(ip_address(far))
        endpoint = endpoint_of(peer)
        datagram = bytes(range(200)) * 7
        # The first datagrams may draw nothing while the neighbours look for each other.
        for _ in range(50):
            self.assertTrue(port.sender.send(datagram, Path(endpoint)))
            await deferLater(reactor, 0.02)
            if self.recorder.errors:
                break
        error = self.recorder.errors[0]
        self.assertEqual((error.remote, error.errno, error.mtu), (endpoint, errno.EMSGSIZE, 1300))
        self.assertEqual(error.offender, ip_address(router))
        self.assertTrue(datagram.startswith(error.quote))
        self.assertGreaterEqual(len(error.quote), 8)
        # From now on the kernel fragments what is larger.
        self.assertTrue(port.sender.send(datagram, Path(endpoint)))
        self.assertEqual(peer.recv(2000), datagram)

    async def test_path_mtu(self) -> None:
        """A too long datagram draws an error with the router's MTU; the next is fragmented and arrives."""
        await self.learns(ANY4, "192.0.2.254", "198.51.100.1")

    async def test_path_mtu_ipv6(self) -> None:
        """So over IPv6."""
        await self.learns(ANY6, "2001:db8::254", "2001:db8:1::1")


class UDPPortsTests(UDPTestCase):
    """All the sockets of a node."""

    def ports(self, *addresses: IPAddress, number: int = 0) -> UDPPorts:
        """Open ports of the recorder."""
        ports = UDPPorts(addresses, lambda address: self.port(address, number, reading=False))
        self.addCleanup(ports.close)
        ports.startReading()
        return ports

    async def test_everywhere_by_default(self) -> None:
        """Without addresses in the policy the node answers over IPv4 and IPv6."""
        ports = self.ports()
        for port, local in zip(ports.ports, (LOCAL4, LOCAL6), strict=True):
            peer = self.peer(local)
            peer.sendto(b"question", (str(local), port.port))
            await self.until(lambda: self.recorder.datagrams)
            ((_, path),) = self.recorder.datagrams
            self.assertEqual(ports.send(batch_of(path, b"answer")), 0)
            self.assertEqual(peer.recvfrom(100)[1][:2], (str(local), port.port))
            self.recorder.datagrams.clear()

    def test_sends_from_the_address_of_the_path(self) -> None:
        """Of several sockets of a family the one whose address the path names sends."""
        addresses = ip_address("127.0.0.2"), ip_address("127.0.0.3")
        ports, peer = self.ports(*addresses), self.peer(LOCAL4)
        for address, port in zip(addresses, ports.ports, strict=True):
            self.assertTrue(ports.sendDatagram(b"x", Path(endpoint_of(peer), address)))
            self.assertEqual(peer.recvfrom(100)[1], (str(address), port.port))

    def test_control_does_not_wait(self) -> None:
        """One wake-up brings key exchange and session control, however many packets came before them."""
        for local in LOCAL4, LOCAL6:
            ports = self.ports(local)
            ports.stopReading()
            peer, to = self.peer(local), (str(local), ports.ports[0].port)
            for number in range(3 * READS_PER_WAKEUP):
                peer.sendto(b"ESP %d" % number, to)
            control = {KEY_EXCHANGE_MARKER + b"key exchange", CONTROL_SPI.to_bytes(4) + b"heartbeat"}
            for datagram in control:
                peer.sendto(datagram, to)
            peer.sendto(NAT_KEEPALIVE, to)
            ports.drain()
            received = [datagram for datagram, _ in self.recorder.datagrams]
            self.assertEqual(len(received), READS_PER_WAKEUP + len(control))
            self.assertEqual({datagram for datagram in received if not datagram.startswith(b"ESP")}, control)
            self.recorder.datagrams.clear()

    def test_control_is_sent_from_the_same_port(self) -> None:
        """A peer sees one endpoint, and the error about a datagram comes whichever socket sent it."""
        ports, peer = self.ports(LOCAL4), self.peer(LOCAL4)
        path = Path(endpoint_of(peer))
        ports.send(batch_of(path, b"ESP"))
        ports.sendDatagram(b"heartbeat", path)
        sources = {peer.recvfrom(100)[1] for _ in range(2)}
        self.assertEqual(sources, {("127.0.0.1", ports.ports[0].port)})

    async def test_errors_about_control(self) -> None:
        """ICMP errors are told, through whichever of the two sockets the kernel tells of them."""
        ports = self.ports(LOCAL4)
        for _ in range(8):  # which socket it is depends on the peer's port
            ports.sendDatagram(b"heartbeat", Path(self.closed_endpoint(LOCAL4)))
        await self.until(lambda: len(self.recorder.errors) == 8)

    def test_port_is_not_shared(self) -> None:
        """Two nodes cannot have the same port, although each has two sockets there."""
        number = self.ports(LOCAL4).ports[0].port
        self.assertRaises(LocalError, self.ports, LOCAL4, number=number)

    def test_kernel_without_choice(self) -> None:
        """Where the kernel cannot tell control traffic from packets, one socket takes both."""
        self.patch(udpsocket, "_SO_ATTACH_REUSEPORT_CBPF", 9999)
        ports, peer = self.ports(LOCAL4), self.peer(LOCAL4)
        for datagram in b"ESP", CONTROL_SPI.to_bytes(4):
            peer.sendto(datagram, ("127.0.0.1", ports.ports[0].port))
        ports.drain()
        self.assertEqual(len(self.recorder.datagrams), 2)
        self.assertTrue(ports.sendDatagram(b"heartbeat", Path(endpoint_of(peer))))
        self.assertRaises(LocalError, self.ports, LOCAL4, number=ports.ports[0].port)

    def test_family_not_listened_on(self) -> None:
        """A path of a family without a socket fails, with an errno to count."""
        ports = self.ports(LOCAL4)
        path = Path(Endpoint(LOCAL6, 4500))
        self.assertFalse(ports.sendDatagram(b"x", path))
        self.assertEqual(ports.send_errno, errno.EAFNOSUPPORT)
        self.assertEqual(ports.send(batch_of(path, b"x", b"y")), 2)

    def test_failure_is_told(self) -> None:
        """The errno of the socket that failed is that of the set."""
        ports = self.ports()
        batch = batch_of(Path(Endpoint(ip_address("192.0.2.1"), 4500)), b"x", b"y")
        self.assertEqual(ports.send(batch), 2)
        self.assertEqual(ports.send_errno, errno.ENETUNREACH)
        self.assertEqual(batch.runs, [])

    def test_kernel_without_ipv6(self) -> None:
        """Where the kernel has no IPv6, listening everywhere means IPv4."""
        self.patch(udp, "IF_INET6", FilePath("/nonexistent"))
        self.assertEqual([port.address for port in self.ports().ports], [ANY4])

    def test_one_address_refused(self) -> None:
        """If one of several addresses cannot be used, the others are let go."""
        number = self.port(ip_address("127.0.0.3")).port
        self.assertRaises(LocalError, self.ports, LOCAL4, ip_address("127.0.0.3"), number=number)
        self.port(LOCAL4, number)
