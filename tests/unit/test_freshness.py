"""`rvpn.keyexchange.freshness`: which first messages may be recordings."""

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import Mechanism
from rvpn.errors import CookieRequired
from rvpn.interfaces import PeerIdentity
from rvpn.keyexchange.freshness import Freshness

PEER, OTHER = (PeerIdentity(Mechanism.NOISE, name) for name in ("client 1", "client 2"))
EARLY, LATER, LATEST = b"\0\1", b"\0\2", b"\0\3"
COOKIE = b"cookie"


class FreshnessTests(SynchronousTestCase):
    """Timestamps of two peers."""

    def setUp(self) -> None:
        self.freshness = Freshness()

    def assert_doubted(self, peer: PeerIdentity, timestamp: bytes) -> None:
        """A message with this timestamp and no cookie may be a recording."""
        self.assertRaises(CookieRequired, self.freshness.check, peer, timestamp, b"")

    def test_first(self) -> None:
        """Whatever comes first may be a recording from before this process started."""
        self.assert_doubted(PEER, LATEST)
        self.freshness.check(PEER, LATER, COOKIE)
        self.freshness.check(PEER, LATEST, b"")
        self.assert_doubted(OTHER, LATEST)

    def test_not_newer(self) -> None:
        """A timestamp as old as the newest, or older, may be a recording; one that was doubted counts not."""
        self.freshness.check(PEER, EARLY, COOKIE)
        self.assert_doubted(PEER, EARLY)
        self.freshness.check(PEER, LATER, b"")
        for timestamp in (EARLY, LATER, b""):
            self.assert_doubted(PEER, timestamp)
        self.freshness.check(PEER, LATEST, b"")

    def test_never_falls(self) -> None:
        """A clock set back gets through by a cookie, but makes no recording fresh again."""
        self.freshness.check(PEER, LATEST, COOKIE)
        self.freshness.check(PEER, EARLY, COOKIE)
        self.assert_doubted(PEER, LATER)
        self.assert_doubted(PEER, LATEST)

    def test_keep(self) -> None:
        """Peers that the policy lacks are forgotten, the others not."""
        for peer in (PEER, OTHER):
            self.freshness.check(peer, EARLY, COOKIE)
        self.freshness.keep({OTHER})
        self.assert_doubted(PEER, LATEST)
        self.freshness.check(OTHER, LATEST, b"")
