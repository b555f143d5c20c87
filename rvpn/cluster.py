"""
Which gateway of a cluster is in use (R5), and what waits while none is (R2).

The order of a cluster is the KMS's (R1). A key request takes the first gateway in that order that has a live
session; the gateway then in use stays in use while its session lives.
"""

from collections import deque
from collections.abc import Callable, Sequence

from rvpn.constants import QUEUE_LENGTH
from rvpn.interfaces import IPAddress
from rvpn.policy.model import Cluster
from rvpn.sessions import Session


class ClusterInUse:
    """
    One cluster of the client's policy: its order, the session in use, and the packets that wait for one.
    """

    def __init__(self, cluster: Cluster, order: Sequence[IPAddress]) -> None:
        self.cluster = cluster
        self.order = order
        self.in_use: Session | None = None
        self.packets: deque[bytes] = deque()

    @property
    def waiting(self) -> int:
        """How many packets wait."""
        return len(self.packets)

    def choose(self, session_of: Callable[[IPAddress], Session | None]) -> Session | None:
        """
        Return the session in use; if there is none, take the first live one in the cluster's order (R5).
        """
        if self.in_use is None or self.in_use.closed:
            live = (session_of(gateway) for gateway in self.order)
            self.in_use = next((session for session in live if session is not None), None)
        return self.in_use

    def take_over(self, before: "ClusterInUse") -> None:
        """Go on where the same cluster of an earlier reading of the policy was (R1)."""
        self.in_use = before.in_use
        self.packets = before.packets

    def wait(self, packet: bytes) -> bool:
        """Queue a packet; return False if the oldest had to be dropped for it (R2)."""
        full = len(self.packets) >= QUEUE_LENGTH
        if full:
            self.packets.popleft()
        self.packets.append(packet)
        return not full

    def take_waiting(self) -> list[bytes]:
        """Return what waited, oldest first, and forget it."""
        packets = list(self.packets)
        self.packets.clear()
        return packets
