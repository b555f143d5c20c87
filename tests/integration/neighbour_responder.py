"""
A process that answers on a LAN for addresses until another machine announces one of them.

    python -m tests.integration.neighbour_responder INTERFACE ADDRESS...

It says "ready" once it has announced them, and ends with its standard input.
"""

import os
import sys
from ipaddress import ip_address

from twisted.internet import reactor
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure

from rvpn.errors import DropReason
from rvpn.interfaces import IPAddress
from rvpn.net.neighbours import NeighbourPort


class Owner:
    """Owns addresses, and gives up what another machine announces."""

    def __init__(self, addresses: list[IPAddress]) -> None:
        self.owned = {address.packed for address in addresses}

    def owns(self, address: bytes) -> bool:
        """See `NeighbourReceiver`."""
        return address in self.owned

    def foreignAnnouncement(self, address: IPAddress) -> None:
        """See `NeighbourReceiver`."""
        self.owned.discard(address.packed)

    def drop(self, reason: DropReason) -> None:
        """See `NeighbourReceiver`."""


class Leash(Protocol):
    """Ends the process with its standard input."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End."""
        os._exit(0)


def main(interface: str, *texts: str) -> None:
    """Announce, answer."""
    addresses = [ip_address(text) for text in texts]
    assert isinstance(reactor, PosixReactorBase)
    port = NeighbourPort(interface, Owner(addresses), reactor)
    port.startReading()
    StandardIO(Leash())
    for address in addresses:
        port.announce(address)
    os.write(1, b"ready\n")
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
