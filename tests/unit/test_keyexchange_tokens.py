"""`rvpn.keyexchange.tokens` and `fragments`: datagrams of the key exchange, and tokens in pieces."""

import math
from hashlib import blake2b
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import KEY_EXCHANGE_DATAGRAM, RETRANSMIT_CONSTANT, RETRANSMIT_INTERVAL, Mechanism
from rvpn.errors import DropReason, LocalError, RemoteError
from rvpn.keyexchange.fragments import Incoming, Outgoing
from rvpn.keyexchange.tokens import (
    MAX_FRAGMENTS,
    Acknowledgement,
    CookieDemand,
    Envelope,
    Fragment,
    Rejected,
    Rejection,
    cookie_of,
    decode,
    demand,
    reject,
)

EXCHANGE_ID = b"exchange"
COOKIE = b"a cookie, really"
PLAIN = Envelope(Mechanism.NOISE, EXCHANGE_ID)
PROVEN = Envelope(Mechanism.NOISE, EXCHANGE_ID, COOKIE)


def pieces(datagrams: list[bytes]) -> list[Fragment]:
    """Decode datagrams that are all fragments."""
    decoded = [decode(datagram) for datagram in datagrams]
    return [message for message in decoded if isinstance(message, Fragment)]


class LayoutTests(SynchronousTestCase):
    """Every byte is where the module's docstring says."""

    def test_fragment(self) -> None:
        """Marker, version, kind, mechanism, token, exchange id, no MAC, index, count, data."""
        (datagram,) = PLAIN.fragments(2, b"data")
        self.assertEqual(datagram, b"\0\0\0\0\1\1\1\2exchange" + bytes(16) + b"\0\1data")

    def test_acknowledgement(self) -> None:
        """The bitmap follows the header."""
        datagram = PLAIN.acknowledgement(3, 0b101)
        self.assertEqual(datagram, b"\0\0\0\0\1\2\1\3exchange" + bytes(16) + b"\0\0\0\5")

    def test_cookie_and_rejection(self) -> None:
        """Both echo mechanism, token and exchange id, and are shorter than any fragment that draws them."""
        message = decode(PLAIN.fragments(0, b"first")[0])
        self.assertEqual(demand(message, COOKIE), b"\0\0\0\0\1\3\1\0exchange" + bytes(16) + COOKIE)
        self.assertEqual(reject(message, Rejected.BUSY), b"\0\0\0\0\1\4\1\0exchange" + bytes(16) + b"\4")

    def test_mac(self) -> None:
        """With a cookie the MAC field is BLAKE2b under it over everything else."""
        (datagram,) = PROVEN.fragments(0, b"data")
        others = datagram[:16] + datagram[32:]
        self.assertEqual(datagram[16:32], blake2b(others, key=COOKIE, digest_size=16).digest())


class ReadingTests(SynchronousTestCase):
    """What is written is read, and what is not is refused."""

    def test_round_trip(self) -> None:
        """Each kind is read as what it is, and knows for which end it is."""
        first = decode(PLAIN.fragments(0, b"first")[0])
        assert isinstance(first, Fragment)
        self.assertEqual((first.token, first.index, first.count, first.data), (0, 0, 1, b"first"))
        acknowledgement = decode(PLAIN.acknowledgement(1, 7))
        assert isinstance(acknowledgement, Acknowledgement)
        self.assertEqual((acknowledgement.token, acknowledgement.bitmap), (1, 7))
        demanded = decode(demand(first, COOKIE))
        assert isinstance(demanded, CookieDemand)
        self.assertEqual(demanded.cookie, COOKIE)
        rejection = decode(reject(first, Rejected.UNKNOWN_MECHANISM))
        assert isinstance(rejection, Rejection)
        self.assertEqual(rejection.text, "unknown mechanism")
        answer = decode(PLAIN.fragments(1, b"answer")[0])
        own_acknowledgement = decode(PLAIN.acknowledgement(0, 1))
        self.assertTrue(first.to_acceptor and acknowledgement.to_acceptor)
        self.assertFalse(demanded.to_acceptor or rejection.to_acceptor)
        self.assertFalse(answer.to_acceptor or own_acknowledgement.to_acceptor)
        self.assertEqual(
            {m.exchange_id for m in (first, acknowledgement, demanded, rejection)}, {EXCHANGE_ID}
        )

    def test_later_reason(self) -> None:
        """A reason of a later version is read."""
        datagram = reject(decode(PLAIN.acknowledgement(1, 7)), Rejected.BUSY)[:-1] + b"\x63"
        rejection = decode(datagram)
        assert isinstance(rejection, Rejection)
        self.assertEqual(rejection.text, "reason 99")

    def test_no_secret_in_repr(self) -> None:
        """A message and an envelope can be logged."""
        demanded = decode(demand(decode(PLAIN.acknowledgement(1, 7)), COOKIE))
        for text in (repr(demanded), repr(PROVEN), repr(decode(PROVEN.fragments(0, b"data")[0]))):
            self.assertNotIn("cookie, really", text)
            self.assertNotIn("data=", text)

    def test_malformed(self) -> None:
        """Each of these breaks one rule."""
        good = PLAIN.fragments(0, b"data")[0]
        cases = {
            "empty": b"",
            "short": good[:31],
            "no body": good[:33],
            "marker": b"\1" + good[1:],
            "version": good[:4] + b"\2" + good[5:],
            "kind": good[:5] + b"\5" + good[6:],
            "index beyond count": good[:32] + b"\1\1data",
            "no fragments": good[:32] + b"\0\0data",
            "too many fragments": good[:32] + b"\0\x21data",
            "long bitmap": PLAIN.acknowledgement(0, 1) + b"\0",
            "short cookie": demand(decode(good), COOKIE)[:-1],
            "long rejection": reject(decode(good), Rejected.BUSY) + b"\0",
            "too long": good + bytes(KEY_EXCHANGE_DATAGRAM),
        }
        for name, datagram in cases.items():
            error = self.assertRaises(RemoteError, decode, datagram)
            self.assertEqual(error.reason, DropReason.MALFORMED_KEY_EXCHANGE, name)

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.binary(max_size=100), st.integers(0, 8))
    def test_garbage(self, body: bytes, kept: int) -> None:
        """Random bytes after a true beginning raise nothing but RemoteError."""
        try:
            decode(PLAIN.fragments(0, b"data")[0][:kept] + body)
        except RemoteError as error:
            self.assertEqual(error.reason, DropReason.MALFORMED_KEY_EXCHANGE)


class CookieTests(SynchronousTestCase):
    """A MAC proves one cookie, or none."""

    def test_found(self) -> None:
        """The right cookie is found among others; no MAC stands for the empty one."""
        proven, plain = (decode(envelope.fragments(0, b"data")[0]) for envelope in (PROVEN, PLAIN))
        self.assertEqual(cookie_of(proven, [b"", b"another", COOKIE]), COOKIE)
        self.assertEqual(cookie_of(plain, [COOKIE, b""]), b"")

    def test_not_found(self) -> None:
        """Neither a wrong MAC nor a missing one passes for a cookie, nor one over other bytes."""
        (datagram,) = PROVEN.fragments(0, b"data")
        plain = PLAIN.fragments(0, b"data")[0]
        for bad in (datagram[:-1] + b"x", datagram[:7] + b"\2" + datagram[8:], plain):
            error = self.assertRaises(RemoteError, cookie_of, decode(bad), [COOKIE])
            self.assertEqual(error.reason, DropReason.BAD_COOKIE)


class FragmentTests(SynchronousTestCase):
    """Tokens are cut and put together again."""

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(st.binary(max_size=200), st.integers(1, 100), st.randoms(use_true_random=False))
    def test_any_order(self, data: bytes, times: int, order: Random) -> None:
        """In any order, with duplicates, the token comes out once, whole, and no datagram is too long."""
        token = data * times
        datagrams = PLAIN.fragments(4, token)
        self.assertLessEqual(max(map(len, datagrams)), KEY_EXCHANGE_DATAGRAM)
        last, *others = order.sample(datagrams, len(datagrams))
        incoming = Incoming()
        for fragment in pieces([*others, *others]) if others else []:
            self.assertIsNone(incoming.add(fragment))
        self.assertEqual(incoming.add(*pieces([last])), token)
        self.assertEqual(incoming.bitmap, 0)

    def test_longest(self) -> None:
        """32 fragments are the most; a longer token is our own fault."""
        longest = (KEY_EXCHANGE_DATAGRAM - 34) * MAX_FRAGMENTS
        self.assertEqual(len(PLAIN.fragments(0, bytes(longest))), MAX_FRAGMENTS)
        self.assertRaises(LocalError, PLAIN.fragments, 0, bytes(longest + 1))

    def test_other_count(self) -> None:
        """A forged fragment with another count does not keep out the true token."""
        incoming = Incoming()
        forged = decode(PLAIN.fragments(1, b"x")[0][:32] + b"\0\2forged")
        assert isinstance(forged, Fragment)
        self.assertIsNone(incoming.add(forged))
        self.assertEqual(incoming.add(*pieces(PLAIN.fragments(1, b"true"))), b"true")

    def test_bitmap(self) -> None:
        """The bitmap names the fragments that are there."""
        incoming = Incoming()
        fragments = pieces(PLAIN.fragments(0, bytes(4096)))
        incoming.add(fragments[3])
        incoming.add(fragments[1])
        self.assertEqual(incoming.bitmap, 0b1010)


class RetransmissionTests(SynchronousTestCase):
    """`Outgoing` repeats what is missing, when it is due."""

    def test_only_what_is_missing(self) -> None:
        """An acknowledged fragment is not sent again, and when all are nothing is due."""
        outgoing = Outgoing([b"0", b"1", b"2"])
        self.assertEqual(outgoing.send(0.0), [b"0", b"1", b"2"])
        outgoing.acknowledge(0b010)
        self.assertEqual(outgoing.send(0.1), [b"0", b"2"])
        self.assertFalse(outgoing.arrived)
        outgoing.acknowledge(0xFFFFFFFF)
        self.assertTrue(outgoing.arrived)
        self.assertEqual(outgoing.due, math.inf)

    def test_schedule(self) -> None:
        """Six repetitions at the interval, then twice the wait each time (DESIGN 4)."""
        outgoing, now, waits = Outgoing([b"0"]), 0.0, []
        for _ in range(10):
            outgoing.send(now)
            waits.append(outgoing.due - now)
            now = outgoing.due
        expected = [RETRANSMIT_INTERVAL] * RETRANSMIT_CONSTANT + [0.2, 0.4, 0.8, 1.6]
        for wait, right in zip(waits, expected, strict=True):
            self.assertAlmostEqual(wait, right)
