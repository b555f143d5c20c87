"""
Which first messages may be recordings (DESIGN 4, docs/decisions/0010).

A timestamp that is not newer than the last from that peer, or the first since this process started, draws a
cookie; a message made for that cookie is fresh whatever its timestamp says. The newest timestamp known of a
peer never falls.
"""

from collections.abc import Container

from rvpn.errors import CookieRequired
from rvpn.interfaces import PeerIdentity


class Freshness:
    """
    The newest timestamp of each peer. Only authenticated peers that the policy names are to be asked about.
    """

    def __init__(self) -> None:
        self._newest: dict[PeerIdentity, bytes] = {}

    def check(self, peer: PeerIdentity, timestamp: bytes, cookie: bytes) -> None:
        """Raise `CookieRequired` if a first message with this timestamp and cookie may be a recording."""
        newest = self._newest.get(peer)
        if not cookie and (newest is None or timestamp <= newest):
            raise CookieRequired
        self._newest[peer] = max(newest or b"", timestamp)

    def keep(self, peers: Container[PeerIdentity]) -> None:
        """Forget all but these peers."""
        self._newest = {peer: newest for peer, newest in self._newest.items() if peer in peers}
