"""How a UDP socket sends: around a socket in memory that refuses what a test tells it to."""

import errno
import socket
from collections import deque
from ipaddress import ip_address
from typing import cast

from twisted.trial.unittest import SynchronousTestCase

from rvpn.interfaces import Endpoint, Path, Run
from rvpn.net.udpsend import RETRIES, WAITING_DATAGRAMS, UDPSender

UDP_SEGMENT = 103
PATH = Path(Endpoint(ip_address("192.0.2.9"), 4500))
OTHER = Path(Endpoint(ip_address("192.0.2.8"), 4500), ip_address("192.0.2.1"))


class FakeSocket:
    """Remembers what it sends; the first of `refusals`, if any, is raised instead (0: none)."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.calls: list[tuple[bytes, int | None]] = []
        self.refusals: deque[int] = deque()
        self.refuses_runs_with = 0

    def sendmsg(
        self, buffers: tuple[bytes], ancillary: list[tuple[int, int, bytes]], _flags: int, _to: object
    ) -> int:
        """Send, as the kernel does with UDP_SEGMENT."""
        content = bytes(buffers[0])
        sizes = [int.from_bytes(data, "little") for _, kind, data in ancillary if kind == UDP_SEGMENT]
        if sizes and self.refuses_runs_with:
            raise OSError(self.refuses_runs_with, "as asked")
        if self.refusals and (refusal := self.refusals.popleft()):
            raise OSError(refusal, "as asked")
        self.calls.append((content, sizes[0] if sizes else None))
        step = sizes[0] if sizes else len(content)
        self.sent += [content[start : start + step] for start in range(0, len(content), step)]
        return len(content)


class UDPSenderTests(SynchronousTestCase):
    """One sender, and a run of two datagrams of 4 bytes and one of 2."""

    view = memoryview(b"--aaaabbbbcc--")
    datagrams = (b"aaaa", b"bbbb", b"cc")

    def setUp(self) -> None:
        self.socket = FakeSocket()
        self.filled: list[int] = []
        self.sender = self.make_sender()

    def make_sender(self, segmenting: bool = True) -> UDPSender:
        """Return a sender through the fake."""
        return UDPSender(cast(socket.socket, self.socket), segmenting, self.filled.append)

    def run_of_three(self, path: Path = PATH) -> Run:
        """Return the run."""
        return Run(path, 2, 12, 4)

    def refuse(self, failure: int, times: int = 1) -> None:
        """Let a datagram fail: the sender tries each twice, since the first error may be that of another."""
        self.socket.refusals.extend([failure] * 2 * times)

    def test_one_call_for_a_run(self) -> None:
        """A run goes in one call, which says how to cut it."""
        run = self.run_of_three()
        self.assertEqual(self.sender.send_run(self.view, run), 0)
        self.assertEqual(self.socket.calls, [(b"aaaabbbbcc", 4)])
        self.assertEqual(run.start, run.end)

    def test_single_datagram(self) -> None:
        """A run of one is sent as it is."""
        self.sender.send_run(self.view, Run(PATH, 2, 6, 4))
        self.assertEqual(self.socket.calls, [(b"aaaa", None)])

    def test_without_segmentation(self) -> None:
        """Without the offload the same run goes one by one."""
        self.assertEqual(self.make_sender(segmenting=False).send_run(self.view, self.run_of_three()), 0)
        self.assertEqual(self.socket.calls, [(each, None) for each in self.datagrams])

    def test_too_long_for_the_path(self) -> None:
        """A run whose datagrams exceed the path MTU goes one by one, and the next is tried whole again."""
        for failure in errno.EMSGSIZE, errno.EINVAL:
            self.socket.refuses_runs_with = failure
            self.assertEqual(self.sender.send_run(self.view, self.run_of_three()), 0)
            self.assertEqual(self.socket.sent[-3:], [*self.datagrams])
            self.socket.refuses_runs_with = 0
            self.sender.send_run(self.view, self.run_of_three())
            self.assertEqual(self.socket.calls[-1][1], 4)
        self.assertEqual(self.sender.refusals, {"run EMSGSIZE": 1, "run EINVAL": 1})

    def test_no_segmentation_on_this_path(self) -> None:
        """Where the way out cannot cut, it is not asked again; another path is."""
        self.socket.refuses_runs_with = errno.EIO
        self.sender.send_run(self.view, self.run_of_three())
        self.socket.refuses_runs_with = 0
        self.sender.send_run(self.view, self.run_of_three())
        self.assertEqual([size for _, size in self.socket.calls], [None] * 6)
        self.sender.send_run(self.view, self.run_of_three(OTHER))
        self.assertEqual(self.socket.calls[-1][1], 4)
        self.assertEqual(self.sender.refusals, {"run EIO": 1})

    def test_refused_run(self) -> None:
        """All datagrams of a run that has no way count as refused, and it does not stay."""
        run = self.run_of_three()
        self.refuse(errno.ENETUNREACH)
        self.assertEqual(self.sender.send_run(self.view, run), 3)
        self.assertEqual(run.start, run.end)
        self.assertEqual(self.sender.failure, errno.ENETUNREACH)
        self.assertEqual(self.sender.refusals, {"datagram ENETUNREACH": 3})

    def test_one_of_a_run_refused(self) -> None:
        """One by one, a refused datagram costs none of the others."""
        self.socket.refusals.extend([0, errno.EPERM, errno.EPERM])
        self.assertEqual(self.make_sender(segmenting=False).send_run(self.view, self.run_of_three()), 1)
        self.assertEqual(self.socket.sent, [b"aaaa", b"cc"])

    def test_error_of_another_datagram(self) -> None:
        """The kernel tells an earlier datagram's error to the next call; that one is sent all the same."""
        self.socket.refusals.append(errno.ECONNREFUSED)
        self.assertEqual(self.sender.send_run(self.view, self.run_of_three()), 0)
        self.assertEqual(self.socket.sent, [*self.datagrams])

    def test_full(self) -> None:
        """A run that meets a full socket stays, nothing more is tried, nothing is lost or doubled."""
        for failure in errno.EAGAIN, errno.ENOBUFS:
            run = self.run_of_three()
            self.refuse(failure)
            self.assertEqual(self.sender.send_run(self.view, run), 0)
            self.assertEqual((run.start, self.filled), (2, [failure]))
            self.assertEqual(self.sender.send_run(self.view, run), 0)
            self.assertEqual(self.socket.sent, [])
            self.assertTrue(self.sender.resume())
            self.sender.send_run(self.view, run)
            self.assertEqual(self.socket.sent, [*self.datagrams])
            self.socket.sent.clear()
            self.filled.clear()
        self.assertEqual(self.sender.refusals, {"socket full": 2})

    def test_full_in_the_middle(self) -> None:
        """What of a run was sent one by one before the socket was full is not sent again."""
        sender, run = self.make_sender(segmenting=False), self.run_of_three()
        self.socket.refusals.extend([0, errno.EAGAIN, errno.EAGAIN])
        sender.send_run(self.view, run)
        self.assertEqual((self.socket.sent, run.start), ([b"aaaa"], 6))
        sender.resume()
        sender.send_run(self.view, run)
        self.assertEqual(self.socket.sent, [*self.datagrams])

    def test_single_datagrams_wait(self) -> None:
        """Heartbeats and the like wait in order while the socket is full, and go before the rest of a run."""
        run = self.run_of_three()
        self.refuse(errno.EAGAIN)
        self.sender.send_run(self.view, run)
        for datagram in b"first", b"second":
            self.assertTrue(self.sender.send(datagram, OTHER))
        self.sender.resume()
        self.sender.send_run(self.view, run)
        self.assertEqual(self.socket.sent, [b"first", b"second", *self.datagrams])

    def test_full_again(self) -> None:
        """A datagram that meets a full socket once more keeps its place."""
        self.refuse(errno.EAGAIN)
        self.sender.send(b"first", PATH)
        self.sender.send(b"second", PATH)
        self.refuse(errno.EAGAIN)
        self.assertFalse(self.sender.resume())
        self.assertTrue(self.sender.resume())
        self.assertEqual(self.socket.sent, [b"first", b"second"])

    def test_bounded_waiting(self) -> None:
        """No more than so many datagrams wait; a further one is refused, and counted."""
        self.refuse(errno.EAGAIN)
        for _ in range(WAITING_DATAGRAMS):
            self.assertTrue(self.sender.send(b"x", PATH))
        self.assertFalse(self.sender.send(b"x", PATH))
        self.assertEqual(self.sender.failure, errno.ENOBUFS)
        self.assertEqual(self.sender.refusals, {"socket full": 1, "datagram ENOBUFS": 1})

    def test_waiting_datagram_refused(self) -> None:
        """A datagram that waited in vain is counted, and does not stop the next."""
        self.refuse(errno.EAGAIN)
        self.sender.send(b"first", PATH)
        self.sender.send(b"second", PATH)
        self.refuse(errno.EPERM)
        self.assertTrue(self.sender.resume())
        self.assertEqual(self.socket.sent, [b"second"])
        self.assertEqual(self.sender.refusals, {"socket full": 1, "datagram EPERM": 1})

    def test_queue_that_never_empties(self) -> None:
        """After so many tries a full card's queue is an error like any other, until something goes out."""
        run = self.run_of_three()
        for _ in range(RETRIES):
            self.refuse(errno.ENOBUFS)
            self.assertEqual(self.sender.send_run(self.view, run), 0)
            self.sender.resume()
        self.refuse(errno.ENOBUFS)
        self.assertEqual(self.sender.send_run(self.view, run), 3)
        self.assertFalse(self.sender.full)
        self.sender.send_run(self.view, self.run_of_three(OTHER))
        self.refuse(errno.ENOBUFS)
        self.assertEqual(self.sender.send_run(self.view, self.run_of_three()), 0)
        self.assertTrue(self.sender.full)
