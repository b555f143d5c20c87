"""Ancillary data of UDP sockets, against bytes as a Linux kernel on x86-64 gave them."""

import errno
import socket
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.interfaces import Endpoint
from rvpn.net.udpsocket import PathError, from_address, local_address, path_error

IP_PKTINFO, IP_RECVERR, IPV6_RECVERR = 8, 11, 25
REMOTE = Endpoint(ip_address("192.0.2.9"), 4500)


class LocalAddressTests(SynchronousTestCase):
    """IP_PKTINFO and IPV6_PKTINFO."""

    def test_ipv4(self) -> None:
        """The address is the one to answer from, which differs from a broadcast's destination."""
        data = (1).to_bytes(4, "little") + bytes([127, 0, 0, 2]) + bytes([127, 255, 255, 255])
        self.assertEqual(local_address([(socket.IPPROTO_IP, IP_PKTINFO, data)]), ip_address("127.0.0.2"))

    def test_ipv6(self) -> None:
        """The address is the destination."""
        data = ip_address("fd00::9").packed + (1).to_bytes(4, "little")
        self.assertEqual(
            local_address([(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data)]), ip_address("fd00::9")
        )

    def test_group(self) -> None:
        """Nobody can answer from a multicast group."""
        data = ip_address("ff02::1").packed + (1).to_bytes(4, "little")
        self.assertIsNone(local_address([(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data)]))

    def test_not_told(self) -> None:
        """Without the data the address is unknown."""
        self.assertIsNone(local_address([]))

    @given(st.ip_addresses())
    @settings(derandomize=True, deadline=None)
    def test_answer_leaves_from_there(self, address: object) -> None:
        """What is received as an address is sent as that address."""
        local = ip_address(str(address))
        expected = None if local.version == 6 and local.is_multicast else local
        self.assertEqual(local_address(from_address(local)), expected)

    def test_kernels_choice(self) -> None:
        """No address, no ancillary data."""
        self.assertEqual(from_address(None), [])


class PathErrorTests(SynchronousTestCase):
    """IP_RECVERR and IPV6_RECVERR: struct sock_extended_err and the offender's sockaddr."""

    def test_port_unreachable(self) -> None:
        """ECONNREFUSED, told by 127.0.0.1."""
        data = bytes.fromhex("6f000000 02030300 00000000 00000000 02000000 7f000001 00000000 00000000")
        error = path_error(b"quoted", [(socket.IPPROTO_IP, IP_RECVERR, data)], REMOTE)
        self.assertEqual(
            error, PathError(REMOTE, errno.ECONNREFUSED, ip_address("127.0.0.1"), None, b"quoted")
        )

    def test_fragmentation_needed(self) -> None:
        """EMSGSIZE comes with the MTU."""
        data = bytes.fromhex("5a000000 02030400 14050000 00000000 02000000 c00002fe 00000000 00000000")
        error = path_error(b"", [(socket.IPPROTO_IP, IP_RECVERR, data)], REMOTE)
        self.assertEqual(error, PathError(REMOTE, errno.EMSGSIZE, ip_address("192.0.2.254"), 1300, b""))

    def test_fragmentation_needed_without_mtu(self) -> None:
        """A router older than RFC 1191 says 0, which is no MTU."""
        data = bytes.fromhex("5a000000 02030400 00000000 00000000 02000000 c00002fe 00000000 00000000")
        error = path_error(b"", [(socket.IPPROTO_IP, IP_RECVERR, data)], REMOTE)
        assert error is not None
        self.assertIsNone(error.mtu)

    def test_ipv6(self) -> None:
        """An IPv6 offender has its address further behind."""
        header = bytes.fromhex("6f000000 03010400 00000000 00000000 0a000000 00000000")
        data = header + ip_address("::1").packed + bytes(4)
        error = path_error(b"", [(socket.IPPROTO_IPV6, IPV6_RECVERR, data)], REMOTE)
        self.assertEqual(error, PathError(REMOTE, errno.ECONNREFUSED, ip_address("::1"), None, b""))

    def test_own_kernel(self) -> None:
        """An error of our own kernel has no offender; PKTINFO beside it does no harm."""
        data = bytes.fromhex("5a000000 01000000 ffff0000 00000000") + bytes(16)
        ancillary = [(socket.IPPROTO_IP, IP_PKTINFO, bytes(12)), (socket.IPPROTO_IP, IP_RECVERR, data)]
        error = path_error(b"", ancillary, REMOTE)
        self.assertEqual(error, PathError(REMOTE, errno.EMSGSIZE, None, 65535, b""))

    def test_something_else(self) -> None:
        """An entry without an extended error is none."""
        self.assertIsNone(path_error(b"", [(socket.IPPROTO_IP, IP_PKTINFO, bytes(12))], REMOTE))

    def test_quote_stays_out_of_the_log(self) -> None:
        """What was sent is not shown where the error is."""
        self.assertNotIn("quoted", repr(PathError(REMOTE, 1, None, None, b"quoted")))
