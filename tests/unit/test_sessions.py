"""The session cache by itself: which pair of SAs sends, what a newer one supersedes, how each is found."""

from dataclasses import replace
from ipaddress import ip_address
from itertools import count, product

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import MAX_SPI, MIN_SPI, MIN_TUNNEL_MTU, NextHeader, TransformID
from rvpn.errors import RemoteError
from rvpn.interfaces import Endpoint, IPAddress, Path
from rvpn.session.sessions import SAPair, Session, SessionCache
from tests.unit.esp_ends import opened
from tests.unit.session_ends import HERE, INNER, PEER, THERE, FakeContext, Numbers, answer, offer


class PairTests(SynchronousTestCase):
    """What one key exchange yields."""

    def test_both_ends_fit(self) -> None:
        """What either end seals the other opens, in both directions and with either transform."""
        for transform in TransformID:
            a, b = offer(1000), answer(2000, transform)
            initiator = SAPair(FakeContext(a, b), initiator=True, path=HERE, now=0.0)
            acceptor = SAPair(FakeContext(b, a), initiator=False, path=THERE, now=0.0)
            for sender, receiver, spi in (initiator, acceptor, 2000), (acceptor, initiator, 1000):
                datagram = sender.outbound.seal(b"inner packet", NextHeader.IPV4)
                self.assertEqual(int.from_bytes(datagram[:4]), spi)
                self.assertEqual(opened(receiver.inbound, datagram)[0], b"inner packet")

    def test_directions_differ(self) -> None:
        """A packet does not open at the end that sealed it: each direction has its own keys."""
        pair = SAPair(FakeContext(offer(1000), answer(1000)), initiator=True, path=HERE, now=0.0)
        datagram = pair.outbound.seal(b"inner packet", NextHeader.IPV4)
        self.assertRaises(RemoteError, opened, pair.inbound, datagram)

    def test_capabilities(self) -> None:
        """Both ends must take partial checksums, or neither sends any; so with trains."""
        for ours, theirs in product((False, True), repeat=2):
            a = replace(offer(1000), partial_checksums=ours, trains=ours)
            b = replace(answer(2000), partial_checksums=theirs, trains=theirs)
            for pair in (
                SAPair(FakeContext(a, b), initiator=True, path=HERE, now=0.0),
                SAPair(FakeContext(b, a), initiator=False, path=THERE, now=0.0),
            ):
                self.assertEqual((pair.partial_checksums, pair.trains), (ours and theirs,) * 2)

    def test_last_word(self) -> None:
        """The acceptor's parameters decide about transform and lifetime, at both ends."""
        a, b = offer(1000), answer(2000, TransformID.CHACHA20_POLY1305)
        for pair in (
            SAPair(FakeContext(a, b), initiator=True, path=HERE, now=0.0),
            SAPair(FakeContext(b, a), initiator=False, path=HERE, now=0.0),
        ):
            self.assertEqual((pair.outbound.transform, pair.lifetime), (TransformID.CHACHA20_POLY1305, 60.0))


class CacheTests(SynchronousTestCase):
    """`SessionCache`."""

    def setUp(self) -> None:
        self.cache = SessionCache(Numbers())
        self.spis = count(1000)

    def session(self, path: Path = HERE, inner: IPAddress = INNER) -> Session:
        """Return a session of the one peer; it is in no cache yet."""
        return Session(PEER, PEER, path, (inner,), 0.0)

    def pair(self, session: Session, made_at: float, *, initiator: bool = False, path: Path = HERE) -> SAPair:
        """Open a pair."""
        spi = next(self.spis)
        mine, theirs = (offer(spi), answer(spi)) if initiator else (answer(spi), offer(spi))
        pair = SAPair(FakeContext(mine, theirs), initiator=initiator, path=path, now=made_at)
        self.cache.add_pair(session, pair)
        return pair

    def test_acceptor_waits(self) -> None:
        """An acceptor's pair opens at once, sends and is found only when it is confirmed (DESIGN 4)."""
        session = self.session()
        pair = self.pair(session, 0.0)
        self.assertIs(self.cache.by_spi[pair.inbound.spi], pair)
        self.assertIsNone(session.sending)
        self.assertEqual((len(self.cache), self.cache.by_inner, self.cache.by_endpoint), (0, {}, {}))
        self.assertEqual(self.cache.confirm(pair), [])
        self.assertIs(session.sending, pair)
        self.assertIs(self.cache.get(PEER), session)
        self.assertIs(self.cache.by_inner[INNER.packed], session)
        self.assertIs(self.cache.by_endpoint[HERE.remote], session)

    def test_initiator_sends(self) -> None:
        """An initiator's first pair sends at once; a later one only when it is confirmed."""
        session = self.session()
        first = self.pair(session, 0.0, initiator=True)
        second = self.pair(session, 1.0, initiator=True)
        self.assertIs(session.sending, first)
        self.cache.confirm(first)
        self.assertEqual(self.cache.confirm(second), [first])
        self.assertIs(session.sending, second)

    def test_overtaken(self) -> None:
        """A pair that is confirmed after a newer one does not send, and is itself superseded."""
        session = self.session()
        old, new = self.pair(session, 0.0), self.pair(session, 1.0)
        self.assertEqual(self.cache.confirm(new), [old])
        self.assertEqual(self.cache.confirm(old), [old])
        self.assertIs(session.sending, new)

    def test_handed_over(self) -> None:
        """A provisional session hands its pair, path and inner addresses to the live one of its peer."""
        live, provisional = self.session(), self.session(THERE, ip_address("10.99.0.2"))
        old = self.pair(live, 0.0)
        self.cache.confirm(old)
        new = self.pair(provisional, 1.0, path=THERE)
        self.assertEqual(self.cache.confirm(new), [old])
        self.assertEqual(list(self.cache), [live])
        self.assertEqual((live.pairs, live.sending, live.path), ([old, new], new, THERE))
        self.assertEqual((new.session, provisional.pairs), (live, []))
        self.assertEqual(self.cache.by_inner, {ip_address("10.99.0.2").packed: live})
        self.assertEqual(self.cache.by_endpoint, {THERE.remote: live})

    def test_removed(self) -> None:
        """A pair that closes is found no more, and its session sends nothing if it sent on that one."""
        session = self.session()
        old, new = self.pair(session, 0.0), self.pair(session, 1.0)
        self.cache.confirm(old)
        self.cache.confirm(new)
        self.cache.remove_pair(old)
        self.assertIs(session.sending, new)
        self.cache.remove_pair(new)
        self.cache.remove_pair(new)
        self.assertEqual((session.sending, session.pairs, self.cache.by_spi), (None, [], {}))

    def test_retired(self) -> None:
        """A session that ended is found no more, but its pairs still open what is under way."""
        session = self.session()
        pair = self.pair(session, 0.0)
        self.cache.confirm(pair)
        self.cache.retire(session)
        self.assertTrue(session.closed)
        self.assertIsNone(session.sending)
        self.assertEqual((len(self.cache), self.cache.by_inner, self.cache.by_endpoint), (0, {}, {}))
        self.assertIs(self.cache.by_spi[pair.inbound.spi], pair)

    def test_successor_stays(self) -> None:
        """The late end of a session takes nothing from another one at the same endpoint and inner address."""
        old = self.session()
        self.cache.establish(old)
        new = Session("another key", PEER, HERE, (INNER,), 1.0)
        self.cache.establish(new)
        self.cache.retire(old)
        self.assertEqual(list(self.cache), [new])
        self.assertIs(self.cache.by_inner[INNER.packed], new)
        self.assertIs(self.cache.by_endpoint[HERE.remote], new)

    def test_changed_while_walking(self) -> None:
        """Sessions may end while one walks through the cache."""
        for number in range(3):
            self.cache.establish(Session(number, PEER, HERE, (), 0.0))
        for session in self.cache:
            self.cache.retire(session)
        self.assertEqual(len(self.cache), 0)

    def test_new_spi(self) -> None:
        """An SPI is neither reserved nor one that this node has given out (RFC 4303 section 2.1)."""
        self.cache = SessionCache(Numbers(0, MIN_SPI - 1, MAX_SPI + 1, 1000, 7777))
        self.pair(self.session(), 0.0)
        self.assertEqual(self.cache.new_spi(), 7777)

    def test_taken_spi(self) -> None:
        """Two exchanges under way that chose the same SPI do not get into each other's way."""
        session = self.session()
        pair = self.pair(session, 0.0)
        self.spis = count(pair.inbound.spi)
        self.assertRaises(RemoteError, self.pair, self.session(), 1.0)
        self.assertIs(self.cache.by_spi[pair.inbound.spi], pair)

    def test_name(self) -> None:
        """A session is called by what identifies it here: the gateway's address, or the client's key."""
        self.assertEqual(self.session().name, PEER.name)
        self.assertEqual(Session(ip_address("192.0.2.2"), PEER, HERE, (), 0.0).name, "192.0.2.2")


class PathMTUTests(SynchronousTestCase):
    """What a path carries."""

    def test_learnt(self) -> None:
        """Only less than what was known changes anything, and never less than IPv6's least."""
        session = Session(PEER, PEER, HERE, (), 0.0)
        self.assertTrue(session.learn_path_mtu(1500))
        first = session.inner_mtu
        self.assertTrue(1400 < first < 1500)
        for mtu in 1500, 9000:
            self.assertFalse(session.learn_path_mtu(mtu))
        self.assertTrue(session.learn_path_mtu(1400))
        self.assertEqual(session.inner_mtu, first - 100)
        self.assertTrue(session.learn_path_mtu(0))
        self.assertEqual(session.inner_mtu, MIN_TUNNEL_MTU)

    def test_forgotten(self) -> None:
        """What was learnt is forgotten for what the first link carries."""
        session = Session(PEER, PEER, HERE, (), 0.0)
        session.learn_path_mtu(1500)
        known = session.inner_mtu
        session.learn_path_mtu(1300)
        session.forget_path_mtu(1500)
        self.assertEqual(session.inner_mtu, known)

    def test_outer_version(self) -> None:
        """IPv6 outside leaves 20 bytes less."""
        outer = Path(Endpoint(ip_address("2001:db8::1"), 4500))
        ipv4, ipv6 = Session(PEER, PEER, HERE, (), 0.0), Session(PEER, PEER, outer, (), 0.0)
        for session in ipv4, ipv6:
            session.learn_path_mtu(1500)
        self.assertEqual(ipv4.inner_mtu - ipv6.inner_mtu, 20)
