"""
The TUN device: inner IP packets from the kernel to the IP filter, and back.

Out: the kernel routes a packet to the device, the reactor wakes `TunPort.doRead`, which reads until nothing
is left, but at most `PACKETS_PER_WAKEUP` packets and some `BYTES_PER_WAKEUP`, one behind another into one
`PacketBatch`, and gives that to `PacketReceiver.packetsReceived`. The bounds leave the reactor's timers their
deadlines under any load; what is left wakes the reactor again. In: `TunPort.write` hands the packets of a
batch to the kernel.

Each packet has a virtio_net_hdr before it, both ways (IFF_VNET_HDR). With TUNSETOFFLOAD the kernel leaves us
work that is cheaper done here, once for many packets: checksums to complete, super-packets of up to 64 KiB to
cut. The header says what; where the kernel leaves nothing, it is zero. `TunDevice` makes all the system
calls.
"""

import errno
import fcntl
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rvpn.constants import VNET_HEADER
from rvpn.errors import LocalError
from rvpn.interfaces import PacketBatch
from rvpn.net.offloads import IN_USE, OFF, Offloads, name_of, refused_by_kernel
from rvpn.net.reactor import LITTLE, PacketReader

#: A wake-up ends after so many packets, or after the one that brings the batch to so many bytes: a
#: millisecond's work.
PACKETS_PER_WAKEUP, BYTES_PER_WAKEUP = 64, 1 << 18
#: Bytes of the largest read: a header, and the largest IP packet (the length fields of RFC 791 and RFC 8200
#: without jumbograms), rounded up.
LARGEST_READ = VNET_HEADER + (1 << 16)

_DEVICE = "/dev/net/tun"
# From linux/if_tun.h.
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ, _TUNSETVNETLE = 0x400454CA, 0x400454D0, 0x400454D8, 0x400454DC
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0001, 0x1000, 0x4000, 0x8000
_OFFLOADS = {"checksum": 0x01, "TSO4": 0x02, "TSO6": 0x04, "USO4": 0x20, "USO6": 0x40}
#: What is asked for, one after another until the kernel agrees. UDP came with Linux 6.2. We do without
#: TUN_F_TSO_ECN: the kernel itself then cuts the few super-packets in which a sender tells that it slowed
#: down.
_REQUESTS = (tuple(_OFFLOADS), ("checksum", "TSO4", "TSO6"), ("checksum",))
_LONGEST_NAME = 15
_IFREQ = struct.Struct("16sH22x")
_INT = struct.Struct("=i")
_REFUSALS = {
    errno.ENOENT: f"there is no {_DEVICE}: load the kernel module (modprobe tun) or give it to the container",
    errno.ENODEV: f"the kernel does not support {_DEVICE}: load its module (modprobe tun)",
    errno.EACCES: f"no permission to open {_DEVICE}: run as root",
    errno.EPERM: "no permission to create a network device: run as root or with CAP_NET_ADMIN",
    errno.EBUSY: "a device of that name exists: end its user or set another [DEVICE] Name",
}
_NOTHING_LEFT_TO_DO = bytes(VNET_HEADER)

_log = Logger()


class PacketReceiver(Protocol):
    """Who takes the packets that the kernel sends to the device."""

    def packetsReceived(self, packets: PacketBatch) -> None:
        """
        Take inner packets. The batch is used again at the next wake-up, so whoever leaves some in it stops
        the reading meanwhile. An exception is logged, not fatal.
        """

    def deviceLost(self, reason: Failure) -> None:
        """Learn that the device is gone, by somebody else's doing: nothing more will come or go."""


class TunDevice:
    """
    A TUN device that this process created and that vanishes with it.

    Without `offload` the kernel leaves us nothing to do. Raises `LocalError` if it cannot be created.
    """

    def __init__(self, name: str, offload: bool = True) -> None:
        if len(name.encode()) > _LONGEST_NAME:
            raise LocalError(
                f"cannot create the TUN device {name}: the name is longer than {_LONGEST_NAME} bytes"
            )
        # Exclusive: a device that somebody else made would outlive us, with our addresses and routes on it.
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
        self._descriptor = -1
        try:
            self._descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK)
            answer = fcntl.ioctl(self._descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
            fcntl.ioctl(self._descriptor, _TUNSETVNETHDRSZ, _INT.pack(VNET_HEADER))
            fcntl.ioctl(self._descriptor, _TUNSETVNETLE, _INT.pack(1))
        except OSError as error:
            self.close()
            refusal = _REFUSALS.get(error.errno or 0, error.strerror)
            raise LocalError(f"cannot create the TUN device {name}: {refusal}") from error
        self.name = answer[:16].rstrip(b"\0").decode()
        self.index = socket.if_nametoindex(self.name)
        #: What the kernel leaves to us, and why it does not the rest.
        self.offloads = self._probe() if offload else Offloads.fromkeys(_OFFLOADS, OFF)

    def _probe(self) -> Offloads:
        offloads: Offloads = {}
        for names in _REQUESTS:
            try:
                fcntl.ioctl(self._descriptor, _TUNSETOFFLOAD, sum(_OFFLOADS[name] for name in names))
            except OSError as error:
                offloads = Offloads.fromkeys(_OFFLOADS, refused_by_kernel(error))
            else:
                return offloads | Offloads.fromkeys(names, IN_USE)
        return offloads

    def fileno(self) -> int:
        """Return the descriptor, -1 after `close`."""
        return self._descriptor

    def read(self, buffer: memoryview) -> int:
        """
        Read one packet behind its header into `buffer` and return the length of both. Raises
        `BlockingIOError` if there is none.
        """
        return os.readv(self._descriptor, (buffer,))

    def write(self, packet: bytes | memoryview) -> None:
        """
        Hand one packet behind its header to the kernel. Raises `OSError`: EIO while the link is down, EINVAL
        if it is not IP or the header does not fit it.
        """
        os.write(self._descriptor, packet)

    def close(self) -> None:
        """Remove the device, with its addresses and routes. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@implementer(IReadDescriptor)
class TunPort(PacketReader):
    """
    A TUN device in the reactor. It exists after construction and reads after `startReading`.

    Raises `LocalError` if the device cannot be created. `offloads` tells what the kernel leaves to us,
    `refusals` counts the packets that it did not take, with the errno's name. `open_device` is for tests.
    """

    def __init__(
        self,
        name: str,
        receiver: PacketReceiver,
        reactor: IReactorFDSet,
        offload: bool = True,
        open_device: Callable[[str, bool], TunDevice] = TunDevice,
    ) -> None:
        self._device = open_device(name, offload)
        self.name = self._device.name
        self.index = self._device.index
        self.offloads = self._device.offloads
        self.refusals: Counter[str] = Counter()
        self._receiver = receiver
        self._reactor = reactor
        self._batch = PacketBatch(BYTES_PER_WAKEUP + LARGEST_READ)
        self._reading = False

    def startReading(self) -> None:
        """Begin to deliver packets."""
        self._reading = True
        self._reactor.addReader(self)

    def stopReading(self) -> None:
        """Leave packets to wait in the kernel, which drops what its queue cannot hold."""
        self._reading = False
        self._reactor.removeReader(self)

    def write(self, packets: PacketBatch) -> int:
        """Hand the packets to the kernel, each behind its header; return how many it did not take."""
        refused = 0
        for start, end in packets.spans:
            try:
                self._device.write(packets.view[start:end])
            except OSError as error:
                refused += self._count(error)
        return refused

    def writePacket(self, packet: bytes) -> bool:
        """Hand one finished packet without a header to the kernel; False if it was not taken."""
        try:
            self._device.write(_NOTHING_LEFT_TO_DO + packet)
        except OSError as error:
            return not self._count(error)
        return True

    def _count(self, refusal: OSError) -> int:
        self.refusals[f"packet {name_of(refusal.errno or 0)}"] += 1
        return 1

    def close(self) -> None:
        """Remove the device. `deviceLost` is not called."""
        if self._reading:
            self.stopReading()
        self._device.close()

    def doRead(self) -> None:
        """Deliver the packets that wait, within the bounds of a wake-up."""
        batch, read = self._batch, self._device.read
        most = 1 if self.single else PACKETS_PER_WAKEUP
        batch.clear()
        try:
            while len(batch.spans) < most and batch.length < BYTES_PER_WAKEUP:
                batch.add(read(batch.view[batch.length :]))
        except BlockingIOError:
            pass
        except OSError:
            self.connectionLost(Failure())
            return
        self.bulk = batch.length > LITTLE
        if not batch.spans:
            return
        # An exception that reached the reactor would silently end the reading while the process lives on.
        try:
            self._receiver.packetsReceived(batch)
        except Exception:
            _log.failure("packets from {device} could not be handled", device=self.name)

    def connectionLost(self, reason: Failure) -> None:
        """End, for the device is gone. The reactor's reason is that of a stream's end and says nothing."""
        self.close()
        self._receiver.deviceLost(Failure(LocalError(f"somebody removed the TUN device {self.name}")))

    def fileno(self) -> int:
        """Return the descriptor for the reactor."""
        return self._device.fileno()

    def logPrefix(self) -> str:
        """Return the name in log lines."""
        return self.name
