"""
The process that impairs paths: packets come out of a TUN device in the router, and go back when it is time.

    TUN -> NAT (out) -> NAT (in) -> Impairments -> heap -> TUN

`rvpn.lab.network` diverts the client's paths into the device by interface, so what is written back follows
the ordinary routes: addresses, ICMP errors and path MTU stay true, only the hop limit counts one router
twice. Requests come as `rvpn.lab.wire` messages at `impairment.sock` in the laboratory's directory:

    {"do": "set", "paths": [[gateway address, "out" | "back"], ...], "impairment": {...}, "seed": n}
    {"do": "rebind"}   {"do": "clear"}   {"do": "status"}
"""

import fcntl
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from random import Random
from struct import pack

from rvpn.arguments import Parser
from rvpn.lab import wire
from rvpn.lab.impairment import Impairment, Impairments
from rvpn.lab.nat import Nat
from rvpn.lab.topology import BACK, IMPAIRMENT_DEVICE, NAT_NETWORKS, OUT

SOCKET = "impairment.sock"

# <linux/if_tun.h>, <linux/sockios.h>
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFMTU = 0x8922
#: The device never is the bottleneck: packets too big for the path draw their ICMP error at the router's
#: link.
_DEVICE_MTU = 65535
_LONGEST_PACKET = 1 << 16
#: Packets read before those that are due are written.
_BURST = 64


def open_tun() -> int:
    """Make the TUN device in this namespace; its descriptor does not block. Raises OSError."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    name = IMPAIRMENT_DEVICE.encode()
    fcntl.ioctl(tun, _TUNSETIFF, pack("16sH22x", name, _IFF_TUN | _IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFMTU, pack("16si20x", name, _DEVICE_MTU))
    return tun


class Impairer:
    """Moves packets through `Impairments` and an optional `Nat`, and answers requests."""

    def __init__(self, tun: int, client: IPv4Address | IPv6Address, listener: socket.socket) -> None:
        self._tun, self._client, self._listener = tun, client, listener
        self._impairments = Impairments()
        self._nat: Nat | None = None
        self._refused = 0
        self._requests: dict[str, Callable[..., wire.Message]] = {
            "set": self._set,
            "rebind": self._rebind,
            "clear": self._clear,
            "status": self._status,
        }

    def run(self) -> None:
        """Move packets for ever."""
        poll = select.epoll()
        poll.register(self._tun, select.EPOLLIN)
        poll.register(self._listener, select.EPOLLIN)
        while True:
            deadline = self._impairments.deadline()
            wait = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            for descriptor, _ in poll.poll(wait):
                if descriptor == self._tun:
                    self._read()
                else:
                    self._serve()
            self._write()

    def _read(self) -> None:
        for _ in range(_BURST):
            try:
                packet: bytes | None = os.read(self._tun, _LONGEST_PACKET)
            except BlockingIOError:
                return
            if packet and self._nat is not None:
                packet = self._nat.inbound(self._nat.outbound(packet))
            if packet:
                self._impairments.take(packet, time.monotonic())

    def _write(self) -> None:
        for packet in self._impairments.due(time.monotonic()):
            try:
                os.write(self._tun, packet)
            except OSError:
                self._refused += 1  # the device is down, or the kernel short of memory

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, suppress(OSError, EOFError):
            connection.settimeout(1.0)
            request, _ = wire.receive(connection)
            try:
                answer = self._requests[request.pop("do")](**request)
            except (KeyError, ValueError, TypeError) as error:
                answer = {"error": str(error)}
            wire.send(connection, answer)

    # --- Requests --------------------------------------------------------------------------------

    def _set(self, paths: list[tuple[str, str]], impairment: dict[str, float], seed: int) -> wire.Message:
        for gateway, direction in paths:
            packed = ip_address(gateway).packed
            self._impairments.set(packed, direction == BACK, Impairment(**impairment), seed)
        return {}

    def _rebind(self, seed: int) -> wire.Message:
        if self._nat is None:
            network = NAT_NETWORKS[self._client.version]
            self._nat = Nat(self._client.packed, network, Random(seed))  # noqa: S311 (repeatable)
        else:
            self._nat.rebind()
        return {"public": str(ip_address(self._nat.public))}

    def _clear(self) -> wire.Message:
        self._impairments.clear()
        self._nat = None
        return {}

    def _status(self) -> wire.Message:
        return {
            "public": None if self._nat is None else str(ip_address(self._nat.public)),
            "overflowed": self._impairments.overflowed,
            "refused": self._refused,
            "directions": [
                {
                    "gateway": str(ip_address(gateway)),
                    "direction": BACK if from_gateway else OUT,
                    "seen": direction.seen,
                    "lost": direction.lost,
                    "reordered": direction.reordered,
                    "duplicated": direction.duplicated,
                }
                for (gateway, from_gateway), direction in self._impairments.directions().items()
            ],
        }


def main() -> None:
    """Make the device, say that it is there, move packets until killed."""
    parser = Parser(prog="python -m rvpn.lab.impair")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="the laboratory's")
    parser.add_argument("client", type=ip_address, metavar="ADDRESS", help="the client's outer address")
    chosen = parser.parse_args()
    with wire.listen(chosen.directory / SOCKET) as listener:
        impairer = Impairer(open_tun(), chosen.client, listener)
        wire.say_ready()
        impairer.run()


if __name__ == "__main__":
    main()
