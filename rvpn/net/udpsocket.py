"""
What Python's `socket` leaves out of UDP on Linux: destination addresses, several datagrams in one call, and
ICMP errors as ancillary data.

`open_socket` makes a socket with everything that `rvpn.net.udp` relies on, `control_socket` one beside it for
what must not wait; `probe` finds out which offloads they have. `local_address` and `from_address` convert
IP_PKTINFO between bytes and addresses, `segmented` adds what makes sendmsg cut a run into datagrams,
`path_error` decodes one entry of the error queue. The layouts are those of linux/in.h, linux/in6.h,
linux/udp.h and linux/errqueue.h, in host byte order.
"""

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from rvpn.constants import CONTROL_SPI, KEY_EXCHANGE_MARKER
from rvpn.errors import LocalError
from rvpn.interfaces import Endpoint, IPAddress
from rvpn.net.offloads import IN_USE, OFF, Offloads, refused_by_kernel

#: Bytes asked for. What arrives in 40 to 60 ms at 1 Gbit/s, for as long as a busy machine may keep us
#: waiting; but of what is sent, as much as leaves in 5 ms: more is no faster, and makes others wait.
RECEIVE_BUFFER, SEND_BUFFER = 4 << 20, 256 << 10

_IP_PKTINFO, _IP_MTU_DISCOVER, _IP_RECVERR = 8, 10, 11
_IPV6_MTU_DISCOVER, _IPV6_RECVERR = 23, 25
_PMTUDISC_WANT = 1
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33

_SO_ATTACH_REUSEPORT_CBPF = 51
_INTERACTIVE = 6  # linux/pkt_sched.h: the card's queue sends it first, if it knows priorities
_UDP_SEGMENT, UDP_GRO = 103, 104
_SEGMENT_SIZE, _GRO_SIZE = struct.Struct("=H"), struct.Struct("=i")

_IN_PKTINFO = struct.Struct("=i4s4s")  # interface, our address, destination in the header
_IN6_PKTINFO = struct.Struct("=16si")  # our address, interface
#: Classic BPF (linux/filter.h): which of the sockets that share an endpoint gets a datagram, by its payload.
_INSTRUCTION, _PROGRAM = struct.Struct("=HBBI"), struct.Struct("@HP")
_CHOICE = (
    (0x20, 0, 0, 0),  # A = the first four bytes; if there are less, the choice is 0
    (0x15, 1, 0, int.from_bytes(KEY_EXCHANGE_MARKER)),
    (0x15, 0, 1, CONTROL_SPI),
    (0x06, 0, 0, 1),  # the second socket
    (0x06, 0, 0, 0),
)
_EXTENDED_ERROR = struct.Struct(
    "=I4BII"
)  # errno, origin, type, code, padding, info, data; a sockaddr follows
_SOCKADDR_IN = struct.Struct("=H2x4s")
_SOCKADDR_IN6 = struct.Struct("=H6x16s")

#: Bytes that are kept of the datagram that an ICMP error quotes: SPI and sequence number, and some more.
QUOTE = 64
#: Room for ancillary data: with datagrams, and with an entry of the error queue (PKTINFO comes with it too).
DATAGRAM_ANCILLARY = socket.CMSG_SPACE(_IN6_PKTINFO.size) + socket.CMSG_SPACE(_GRO_SIZE.size)
ERROR_ANCILLARY = DATAGRAM_ANCILLARY + socket.CMSG_SPACE(_EXTENDED_ERROR.size + 28)

Ancillary = list[tuple[int, int, bytes]]

_REFUSALS = {
    errno.EADDRINUSE: "another program uses it",
    errno.EADDRNOTAVAIL: "no interface has this address",
    errno.EACCES: "no permission for a port below 1024",
    errno.EAFNOSUPPORT: "the kernel has no IPv6",
    errno.EPERM: "no permission to mark packets: run as root or with CAP_NET_ADMIN",
}


@dataclass(frozen=True, slots=True)
class PathError:
    """
    Something about a datagram of ours to `remote`, reported by `offender` (None: by our own kernel).

    `mtu`, in bytes with the IP header, comes with EMSGSIZE alone. `quote` is the beginning of our datagram,
    as far as the error quotes it: who is not on the path cannot know it.
    """

    remote: Endpoint
    errno: int
    offender: IPAddress | None
    mtu: int | None
    quote: bytes = field(repr=False)


def open_socket(endpoint: Endpoint, mark: int | None) -> socket.socket:
    """Return a non-blocking UDP socket bound to `endpoint`. Raises `LocalError` with the reason."""
    try:
        opened = socket.socket(_family(endpoint.address), socket.SOCK_DGRAM)
        try:
            _configure(opened, mark)
            opened.bind((str(endpoint.address), endpoint.port))
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        refusal = _REFUSALS.get(error.errno or 0, error.strerror)
        raise LocalError(f"cannot listen on UDP {endpoint}: {refusal}") from error
    return opened


def control_socket(data: socket.socket) -> socket.socket | None:
    """
    Return a second socket for the endpoint of `data`, which gets its key exchange and session control.

    Without it they would wait behind all the ESP packets in the receive buffer, for longer than an answer may
    take. The kernel tells them apart by their first four bytes; None if it cannot (before Linux 4.5).
    """
    control = socket.socket(data.family, socket.SOCK_DGRAM)
    try:
        _configure(control, data.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) or None)
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _INTERACTIVE)
        # Not before `data` was bound, which would else share the port with any other process of this user.
        for each in data, control:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        control.bind(data.getsockname())
        instructions = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*each) for each in _CHOICE))
        program = _PROGRAM.pack(len(_CHOICE), ctypes.addressof(instructions))
        control.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
    except OSError:
        control.close()
        data.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        return None
    return control


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _configure(opened: socket.socket, mark: int | None) -> None:
    opened.setblocking(False)
    if opened.family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        opened.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_WANT)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_WANT)
    if mark is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    for forced, plain, size in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER),
    ):
        try:
            opened.setsockopt(socket.SOL_SOCKET, forced, size)
        except PermissionError:  # without root: as much as net.core.rmem_max and wmem_max allow
            opened.setsockopt(socket.SOL_SOCKET, plain, size)


def probe(opened: socket.socket, offload: bool) -> Offloads:
    """Turn on what `offload` wants and the kernel has: one call takes and brings many datagrams."""
    if not offload:
        return {"UDP_SEGMENT": OFF, "UDP_GRO": OFF}
    # Of UDP_SEGMENT 0, what holds anyway, shows that it is known; each sendmsg has a size of its own.
    return {
        name: _enable(opened, option, value)
        for name, option, value in (("UDP_SEGMENT", _UDP_SEGMENT, 0), ("UDP_GRO", UDP_GRO, 1))
    }


def _enable(opened: socket.socket, option: int, value: int) -> str:
    try:
        opened.setsockopt(socket.IPPROTO_UDP, option, value)
    except OSError as error:
        return refused_by_kernel(error)
    return IN_USE


def segmented(ancillary: Ancillary, size: int) -> Ancillary:
    """Return the ancillary data with which one sendmsg sends a run of datagrams of `size` bytes."""
    return [*ancillary, (socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(size))]


def size_of_each(data: bytes) -> int:
    """Return the size of the datagrams that UDP_GRO joined."""
    (size,) = _GRO_SIZE.unpack(data)
    return int(size)


def local_address(ancillary: Iterable[tuple[int, int, bytes]]) -> IPAddress | None:
    """Return our address that a received datagram was sent to; None if it was a group, or is not told."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            return IPv4Address(_IN_PKTINFO.unpack(data)[1])
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            address = IPv6Address(_IN6_PKTINFO.unpack(data)[0])
            return None if address.is_multicast else address
    return None


def from_address(local: IPAddress | None) -> Ancillary:
    """Return the ancillary data that makes a datagram leave from `local` (None: the kernel's choice)."""
    if local is None:
        return []
    if local.version == 4:
        return [(socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.pack(0, local.packed, bytes(4)))]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(local.packed, 0))]


def path_error(quote: bytes, ancillary: Ancillary, remote: Endpoint) -> PathError | None:
    """Decode an entry of the error queue (recvmsg with MSG_ERRQUEUE); None if it is about something else."""
    kinds = (socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)
    for level, kind, data in ancillary:
        if (level, kind) in kinds:
            number, _, _, _, _, information, _ = _EXTENDED_ERROR.unpack_from(data)
            mtu = information if number == errno.EMSGSIZE and information else None
            return PathError(remote, number, _offender(data[_EXTENDED_ERROR.size :]), mtu, quote)
    return None


def _offender(sockaddr: bytes) -> IPAddress | None:
    (family,) = struct.unpack_from("=H", sockaddr)
    if family == socket.AF_INET:
        return IPv4Address(_SOCKADDR_IN.unpack_from(sockaddr)[1])
    if family == socket.AF_INET6:
        return IPv6Address(_SOCKADDR_IN6.unpack_from(sockaddr)[1])
    return None
