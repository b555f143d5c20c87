"""`rvpn.keyexchange.acceptor` under load: cookies, bounds, and no reply longer than its request."""

import contextlib
from ipaddress import ip_address
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.agenda import Agenda
from rvpn.constants import Mechanism
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import Endpoint, Path, SecurityContext
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptor import (
    HALF_OPEN_TIME,
    LOAD_HALF_OPEN,
    LOAD_RATE,
    MAX_HALF_OPEN,
    MAX_HEAVY,
    Acceptor,
    AcceptRequest,
    Reply,
    _Key,
)
from rvpn.keyexchange.tokens import CookieDemand, Envelope, Fragment, Message, Rejected, Rejection
from tests.unit.keyexchange_ends import (
    EXCHANGE_ID,
    PATH,
    ChattyContext,
    Gateway,
    chatty,
    chatty_acceptor,
    first,
    only,
    path,
    stepped,
)

SEEDS = (
    first()[0],
    first(b"another!")[0],
    first(cookie=b"c" * 16)[0],
    Envelope(Mechanism.NOISE, EXCHANGE_ID).acknowledgement(1, 1),
    Envelope(Mechanism.NOISE, EXCHANGE_ID).fragments(2, bytes(100))[0],
    tokens.reject(tokens.decode(first()[0]), Rejected.BUSY),
)


class LoadTests(SynchronousTestCase):
    """Under load an address has to prove itself, and the state is bounded."""

    def test_rate(self) -> None:
        """Beyond so many first messages in a second each draws a cookie; a second later none does."""
        gateway, garbage = Gateway(), bytes(200)
        for number in range(LOAD_RATE):
            datagram = Envelope(Mechanism.NOISE, number.to_bytes(8, "big")).fragments(0, garbage)[0]
            self.assertIsInstance(only(gateway.receive(datagram)), Rejection)
        cookie = gateway.demanded(first()[0])
        self.assertIsNotNone(gateway.receive(first(cookie=cookie)[0]).established)
        self.assertIsNotNone(
            gateway.receive(first(b"another!", timestamp=b"\xff" * 12)[0], now=1.0).established
        )

    def begun(self, half_open: int, mechanism: Mechanism = Mechanism.NOISE) -> Acceptor:
        """Return an acceptor with so many half-open exchanges, all of proven addresses."""

        def accept(request: AcceptRequest) -> SecurityContext:
            return ChattyContext((100, 100), request.cookie, initiator=False)

        contexts = dict.fromkeys(Mechanism, accept)
        acceptor = Acceptor(contexts, Agenda(), Random(1), 0.0, always_cookie=())
        for number in range(half_open):
            self.begin(acceptor, number, mechanism)
        return acceptor

    def begin(self, acceptor: Acceptor, number: int, mechanism: Mechanism = Mechanism.NOISE) -> Reply:
        """Begin an exchange with a cookie."""
        cookie = acceptor._cookies.issue(path(number).remote, EXCHANGE_ID, 0.0)
        return acceptor.receive(self.first_of(cookie, mechanism), path(number), 0.0)

    def first_of(self, cookie: bytes, mechanism: Mechanism = Mechanism.NOISE) -> Message:
        """Return the first message under a cookie."""
        token = stepped(ChattyContext((100, 100), cookie, initiator=True), None)
        return tokens.decode(Envelope(mechanism, EXCHANGE_ID, cookie).fragments(0, token)[0])

    def test_half_open(self) -> None:
        """Many half-open exchanges are load too."""
        acceptor = self.begun(LOAD_HALF_OPEN - 1)
        self.assertIsInstance(only(acceptor.receive(self.first_of(b""), path(9999), 0.0)), Fragment)
        self.assertIsInstance(only(acceptor.receive(self.first_of(b""), path(9998), 0.0)), CookieDemand)

    def test_bound(self) -> None:
        """Beyond the bound nothing begins and nothing is evicted; a confirmed one makes room."""
        acceptor = self.begun(MAX_HALF_OPEN - 1)
        last = self.begin(acceptor, MAX_HALF_OPEN).established
        assert last is not None
        reply = self.begin(acceptor, MAX_HALF_OPEN + 1)
        rejection, error = only(reply), reply.refused
        assert isinstance(rejection, Rejection)
        assert error is not None
        self.assertEqual((rejection.text, error.reason), ("busy", DropReason.TOO_MANY_EXCHANGES))
        self.assertEqual(len(acceptor), MAX_HALF_OPEN)
        self.assertIsInstance(only(self.begin(acceptor, 0)), Fragment)
        acceptor.confirmed(last)
        self.assertIsNotNone(self.begin(acceptor, MAX_HALF_OPEN + 1).established)

    def test_heavy(self) -> None:
        """Exchanges that take much memory have a bound of their own, and leave room for the others."""
        acceptor = self.begun(MAX_HEAVY - 1, Mechanism.TLS)
        last = self.begin(acceptor, MAX_HEAVY, Mechanism.TLS).established
        assert last is not None
        self.assertIsInstance(only(self.begin(acceptor, MAX_HEAVY + 1, Mechanism.TLS)), Rejection)
        self.assertIsNotNone(self.begin(acceptor, MAX_HEAVY + 2).established)
        acceptor.confirmed(last)
        self.assertIsNotNone(self.begin(acceptor, MAX_HEAVY + 1, Mechanism.TLS).established)

    def test_greedy_stranger(self) -> None:
        """One address that takes all places shuts nobody out: its oldest exchange goes for a new one."""
        for greedy, other in (
            (lambda number: f"192.0.2.1 {number + 1}", "192.0.2.2 4500"),
            (lambda number: f"2001:db8::{number:x} 4500", "2001:db8:0:1::1 4500"),
        ):
            acceptor = chatty((100, 100, 100, 100)).acceptor
            requests = [self.begin_at(acceptor, greedy(number)) for number in range(MAX_HEAVY)]
            begun = [self.begin_at(acceptor, other)]
            begun += [self.begin_at(acceptor, greedy(MAX_HEAVY + number)) for number in range(MAX_HEAVY - 1)]
            self.assertEqual((len(acceptor), acceptor._heavy), (MAX_HEAVY, MAX_HEAVY))
            self.assertTrue(all(key in acceptor._half_open for key in begun))
            self.assertFalse(any(key in acceptor._half_open for key in requests))
            acceptor._agenda.advance(HALF_OPEN_TIME)
            self.assertEqual((len(acceptor), acceptor._heavy, acceptor._strangers), (0, 0, {}))

    def begin_at(self, acceptor: Acceptor, place: str) -> _Key:
        """Begin an exchange that has yet to authenticate, from an address and port; return what tells it."""
        address, port = place.split()
        remote = Endpoint(ip_address(address), int(port))
        cookie = acceptor._cookies.issue(remote, EXCHANGE_ID, 0.0)
        token = stepped(ChattyContext((100, 100, 100, 100), cookie, initiator=True), None)
        message = tokens.decode(Envelope(Mechanism.TLS, EXCHANGE_ID, cookie).fragments(0, token)[0])
        self.assertIsInstance(only(acceptor.receive(message, Path(remote), 0.0)), Fragment)
        return remote, EXCHANGE_ID, cookie

    def test_pieces_of_strangers(self) -> None:
        """An address that has a cookie but no key occupies nothing: noise's first token comes whole."""
        gateway = Gateway()
        gateway.receive(first()[0])
        cookie = gateway.demanded(first(b"another!")[0])
        before = len(gateway.acceptor)
        for count in (2, 32):
            body = bytes((0, count)) + bytes(100)
            datagram = Envelope(Mechanism.NOISE, b"another!", cookie)._write(tokens.Kind.FRAGMENT, 0, body)
            error = self.assertRaises(RemoteError, gateway.receive, datagram)
            self.assertEqual(error.reason, DropReason.MALFORMED_KEY_EXCHANGE)
        self.assertEqual(len(gateway.acceptor), before)

    def test_expiry(self) -> None:
        """Half-open exchanges that nobody confirms give their room back."""
        acceptor = self.begun(MAX_HALF_OPEN)
        acceptor._agenda.advance(HALF_OPEN_TIME)
        self.assertEqual((len(acceptor), len(acceptor._agenda)), (0, 0))

    def test_flood(self) -> None:
        """50,000 first messages from as many addresses leave nothing behind."""
        gateway, random = Gateway(), Random(3)
        rejected = demanded = 0
        for number in range(50_000):
            body = random.randbytes(120)
            datagram = b"\0\0\0\0\1\1\1\0" + body[:8] + bytes(16) + b"\0\1" + body[8:]
            reply = gateway.receive(datagram, path(number), now=number / 25_000)
            kind = datagram_kind(reply)
            rejected += kind == tokens.Kind.REJECTION
            demanded += kind == tokens.Kind.COOKIE
        self.assertEqual((rejected, demanded), (2 * LOAD_RATE, 50_000 - 2 * LOAD_RATE))
        cookies = gateway.acceptor._cookies
        self.assertEqual((len(gateway.acceptor), len(gateway.agenda), len(cookies._spent[0])), (0, 0, 0))

    def test_flood_with_forged_cookies(self) -> None:
        """MACs that nobody can have made are refused before anything else is done."""
        gateway = Gateway(lambda request, initiation: self.fail("was decided about"))
        datagrams = [first(cookie=number.to_bytes(16, "big"))[0] for number in range(20)]
        for number, datagram in enumerate(datagrams * 50):
            error = self.assertRaises(RemoteError, gateway.receive, datagram, path(number))
            self.assertEqual(error.reason, DropReason.BAD_COOKIE)


def datagram_kind(reply: Reply) -> int:
    """Return the kind byte of the one datagram."""
    (datagram,) = reply.datagrams
    return datagram[5]


class AmplificationTests(SynchronousTestCase):
    """No reply to an unproven address is longer than its request (DESIGN 4)."""

    def test_long_answer(self) -> None:
        """If the answer would be longer, a cookie is asked for, and no state kept."""
        for answer, kind in ((100, Fragment), (101, CookieDemand), (4096, CookieDemand)):
            acceptor = chatty_acceptor((100, answer), Agenda(), Random(1))
            token = stepped(ChattyContext((100, answer), b"", initiator=True), None)
            message = tokens.decode(Envelope(Mechanism.TLS, EXCHANGE_ID).fragments(0, token)[0])
            self.assertIsInstance(only(acceptor.receive(message, PATH, 0.0)), kind)
            self.assertEqual(len(acceptor), 1 if kind is Fragment else 0)

    def test_always(self) -> None:
        """A mechanism that always wants a cookie, and a first token of several datagrams, draw one."""
        for lengths, cookies in ((100, 10), True), ((4096, 10), False):
            acceptor = chatty_acceptor(lengths, Agenda(), Random(1), cookies=cookies)
            token = stepped(ChattyContext(lengths, b"", initiator=True), None)
            message = tokens.decode(Envelope(Mechanism.TLS, EXCHANGE_ID).fragments(0, token)[0])
            self.assertIsInstance(only(acceptor.receive(message, PATH, 0.0)), CookieDemand)
            self.assertEqual(len(acceptor), 0)

    def test_shorter_than_a_cookie(self) -> None:
        """A message too short for a cookie draws nothing."""
        message = tokens.decode(Envelope(Mechanism.TLS, EXCHANGE_ID).fragments(0, b"short")[0])
        acceptor = chatty_acceptor((9, 9), Agenda(), Random(1), cookies=True)
        error = self.assertRaises(RemoteError, acceptor.receive, message, PATH, 0.0)
        self.assertEqual(error.reason, DropReason.MALFORMED_KEY_EXCHANGE)

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.data())
    def test_mutants(self, data: st.DataObject) -> None:
        """Whatever is made of true messages, no reply is longer, and nothing but RemoteError is raised."""
        gateway = Gateway()
        gateway.receive(SEEDS[0])
        mutant = bytearray(data.draw(st.sampled_from(SEEDS)))
        for _ in range(data.draw(st.integers(0, 3))):
            mutant[data.draw(st.integers(4, len(mutant) - 1))] = data.draw(st.integers(0, 255))
        datagram = bytes(mutant[: data.draw(st.integers(0, len(mutant)))] + data.draw(st.binary(max_size=8)))
        with contextlib.suppress(RemoteError):
            reply = gateway.receive(datagram)
            self.assertLessEqual(sum(map(len, reply.datagrams)), len(datagram))

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(st.data())
    def test_mutants_with_a_cookie(self, data: st.DataObject) -> None:
        """Behind a good MAC too nothing but RemoteError is raised, and the state is bounded."""
        network = chatty((2000, 2000, 2000, 10))
        acceptor = network.acceptor
        cookie = acceptor._cookies.issue(PATH.remote, EXCHANGE_ID, 0.0)
        true = ChattyContext((2000, 2000, 2000, 10), cookie, initiator=True)
        envelope = Envelope(Mechanism.TLS, EXCHANGE_ID, cookie)
        for datagram in envelope.fragments(0, stepped(true, None)):
            acceptor.receive(tokens.decode(datagram), PATH, 0.0)
        for _ in range(8):
            kind = data.draw(st.sampled_from(list(tokens.Kind)))
            body = data.draw(st.binary(max_size=6))
            datagram = envelope._write(kind, data.draw(st.integers(0, 255)), body)
            with contextlib.suppress(RemoteError):
                acceptor.receive(tokens.decode(datagram), PATH, 0.0)
        self.assertLessEqual(len(acceptor), 1)
