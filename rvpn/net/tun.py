"""
The TUN device: whole inner IP packets from the kernel to the IP filter, and back.

Out: the kernel routes a packet to the device, the reactor wakes `TunPort.doRead`, which reads up to
`READS_PER_WAKEUP` packets, one after another into one buffer, and gives each to
`PacketReceiver.packetReceived`. The bound leaves the reactor's timers their deadlines under any load; what is
left wakes the reactor again. In: `TunPort.write` hands a packet to the kernel.

`TunDevice` makes all the system calls and is what a later version changes to read super-packets
(IFF_VNET_HDR): the packet may then start behind a header in the same buffer.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rvpn.errors import LocalError

READS_PER_WAKEUP = 16
#: Bytes: the largest IP packet (the length fields of RFC 791 and RFC 8200 without jumbograms), rounded up.
MAX_PACKET = 1 << 16

_DEVICE = "/dev/net/tun"
# From linux/if_tun.h.
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI, _IFF_TUN_EXCL = 0x0001, 0x1000, 0x8000
_LONGEST_NAME = 15
_IFREQ = struct.Struct("16sH22x")
_REFUSALS = {
    errno.ENOENT: f"there is no {_DEVICE}: load the kernel module (modprobe tun) or give it to the container",
    errno.ENODEV: f"the kernel does not support {_DEVICE}: load its module (modprobe tun)",
    errno.EACCES: f"no permission to open {_DEVICE}: run as root",
    errno.EPERM: "no permission to create a network device: run as root or with CAP_NET_ADMIN",
    errno.EBUSY: "a device of that name exists: end its user or set another [DEVICE] Name",
}

_log = Logger()


class PacketReceiver(Protocol):
    """Who takes the packets that the kernel sends to the device."""

    def packetReceived(self, packet: memoryview) -> None:
        """Take one inner packet. The memory is reused after the return; an exception is logged, not fatal."""

    def deviceLost(self, reason: Failure) -> None:
        """Learn that the device is gone, by somebody else's doing: nothing more will come or go."""


class TunDevice:
    """A TUN device that this process created and that vanishes with it. Raises `LocalError` if it cannot."""

    def __init__(self, name: str) -> None:
        if len(name.encode()) > _LONGEST_NAME:
            raise LocalError(
                f"cannot create the TUN device {name}: the name is longer than {_LONGEST_NAME} bytes"
            )
        # Exclusive: a device that somebody else made would outlive us, with our addresses and routes on it.
        request = _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL)
        self._descriptor = -1
        try:
            self._descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK)
            answer = fcntl.ioctl(self._descriptor, _TUNSETIFF, request)
        except OSError as error:
            self.close()
            refusal = _REFUSALS.get(error.errno or 0, error.strerror)
            raise LocalError(f"cannot create the TUN device {name}: {refusal}") from error
        self.name = answer[:16].rstrip(b"\0").decode()
        self.index = socket.if_nametoindex(self.name)

    def fileno(self) -> int:
        """Return the descriptor, -1 after `close`."""
        return self._descriptor

    def read(self, buffer: memoryview) -> int:
        """Read one packet into `buffer` and return its length. Raises `BlockingIOError` if there is none."""
        return os.readv(self._descriptor, [buffer])

    def write(self, packet: bytes | memoryview) -> None:
        """Hand one packet to the kernel. Raises `OSError`: EIO while the link is down, EINVAL if not IP."""
        os.write(self._descriptor, packet)

    def close(self) -> None:
        """Remove the device, with its addresses and routes. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@implementer(IReadDescriptor)
class TunPort:
    """
    A TUN device in the reactor. It exists after construction and reads after `startReading`.

    Raises `LocalError` if the device cannot be created. `open_device` is for tests.
    """

    def __init__(
        self,
        name: str,
        receiver: PacketReceiver,
        reactor: IReactorFDSet,
        open_device: Callable[[str], TunDevice] = TunDevice,
    ) -> None:
        self._device = open_device(name)
        self.name = self._device.name
        self.index = self._device.index
        self._receiver = receiver
        self._reactor = reactor
        self._buffer = memoryview(bytearray(MAX_PACKET))
        self._reading = False

    def startReading(self) -> None:
        """Begin to deliver packets."""
        self._reading = True
        self._reactor.addReader(self)

    def stopReading(self) -> None:
        """Leave packets to wait in the kernel, which drops what its queue cannot hold."""
        self._reading = False
        self._reactor.removeReader(self)

    def write(self, packet: bytes | memoryview) -> bool:
        """Hand one inner packet to the kernel; False, for the caller to count, if it was not taken."""
        try:
            self._device.write(packet)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Remove the device. `deviceLost` is not called."""
        if self._reading:
            self.stopReading()
        self._device.close()

    def doRead(self) -> None:
        """Deliver the packets that wait, up to `READS_PER_WAKEUP`."""
        for _ in range(READS_PER_WAKEUP):
            if not self._reading:  # the receiver stopped it meanwhile
                break
            try:
                length = self._device.read(self._buffer)
            except BlockingIOError:
                break
            except OSError:
                self.connectionLost(Failure())
                break
            self._deliver(self._buffer[:length])

    def _deliver(self, packet: memoryview) -> None:
        # An exception that reached the reactor would silently end the reading while the process lives on.
        try:
            self._receiver.packetReceived(packet)
        except Exception:
            _log.failure("a packet from {device} could not be handled", device=self.name)

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
