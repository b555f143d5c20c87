"""`rvpn.keyexchange.initiator` joined with an acceptor in memory: loss, forgeries, cookies, giving up."""

import contextlib
import math

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import Mechanism
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import SecurityContext
from rvpn.keyexchange import tokens
from rvpn.keyexchange.initiator import MAX_COOKIES, InitiatorExchange
from rvpn.keyexchange.tokens import Envelope, Rejected
from tests.unit.keyexchange_ends import (
    EXCHANGE_ID,
    ChattyContext,
    Network,
    chatty,
    noise_acceptor,
    noise_initiator,
    stepped,
)

LONG = (4096,) * 4


def noise_exchange(now: float = 0.0) -> InitiatorExchange:
    """Return an exchange of mechanism noise that has not begun; its prologue is the cookie."""

    def new_context(cookie: bytes) -> SecurityContext:
        return noise_initiator(prologue=cookie)

    return InitiatorExchange(EXCHANGE_ID, Mechanism.NOISE, new_context, now)


def answer_to(datagrams: list[bytes], cookie: bytes = b"") -> bytes:
    """Return the true acceptor's answer to a first noise message made with this cookie."""
    (datagram,) = datagrams
    first = tokens.decode(datagram)
    assert isinstance(first, tokens.Fragment)
    token = stepped(noise_acceptor(prologue=cookie), first.data)
    return Envelope(Mechanism.NOISE, EXCHANGE_ID, cookie).fragments(1, token)[0]


class LossTests(SynchronousTestCase):
    """Exchanges complete over paths that lose, reorder and duplicate (DESIGN 4)."""

    def trial(self, seed: int) -> Network:
        """Run one exchange of four tokens of 4 KiB over a bad path."""
        network = chatty(LONG, seed=seed)
        network.loss, network.duplication, network.jitter = 0.2, 0.05, 0.02
        network.run(5.0)
        return network

    def test_twenty_percent(self) -> None:
        """200 of 200 complete at 20 % loss, all but two in the 2 s of `ExchangeTime`, each accepted once."""
        networks = [self.trial(seed) for seed in range(200)]
        self.assertTrue(all(network.exchange.context is not None for network in networks))
        self.assertGreaterEqual(sum(network.now <= 2.0 for network in networks), 198)
        self.assertEqual({len(network.established) for network in networks}, {1})
        self.assertEqual([network.refused for network in networks if network.refused], [])

    def test_no_loss(self) -> None:
        """Without loss nothing is sent twice, and each of five round trips takes one delay each way."""
        network = chatty(LONG)
        network.run(5.0)
        self.assertAlmostEqual(network.now, 6 * network.delay)
        self.assertEqual(len(network.to_acceptor), len(set(network.to_acceptor)))
        self.assertEqual(len(network.to_initiator), len(set(network.to_initiator)))

    def test_only_what_is_missing(self) -> None:
        """A fragment that was acknowledged is not sent again."""
        network, lost = chatty(LONG), list[bytes]()

        def loses(datagram: bytes) -> bool:
            message = tokens.decode(datagram)
            if lost or not (
                isinstance(message, tokens.Fragment) and message.token == 2 and message.index == 2
            ):
                return False
            lost.append(datagram)
            return True

        network.loses = loses
        network.run(5.0)
        self.assertIsNotNone(network.exchange.context)
        twice = [datagram for datagram in network.to_acceptor if network.to_acceptor.count(datagram) == 2]
        self.assertEqual(twice, lost * 2)

    def test_last_token_of_the_initiator(self) -> None:
        """If the initiator has the last word, its context is out only when that has arrived."""
        network = chatty((100, 100, 4096))
        network.loss = 0.2
        network.run(5.0)
        self.assertIsNotNone(network.exchange.context)
        self.assertEqual(len(network.established), 1)

    def test_last_token_without_cookie(self) -> None:
        """The same without a cookie: the acknowledgement of the last token counts."""
        network = chatty((100, 100, 100), cookies=False)
        network.run(5.0)
        self.assertIsNotNone(network.exchange.context)
        self.assertAlmostEqual(network.now, 4 * network.delay)

    def test_last_token_of_the_acceptor(self) -> None:
        """Under a cookie the acceptor hears that its last token has arrived, and stops repeating it."""
        network = chatty((100, 100))
        network.run(5.0)
        last = tokens.decode(network.to_acceptor[-1])
        assert isinstance(last, tokens.Acknowledgement)
        self.assertEqual((last.token, last.bitmap), (1, 1))

    def test_exchange_without_end(self) -> None:
        """A mechanism that never ends is refused when token numbers run out."""
        network = chatty((20,) * 300, lifetime=10.0)
        network.run(9.0)
        self.assertEqual({error.reason for error in network.refused}, {DropReason.MALFORMED_KEY_EXCHANGE})
        self.assertEqual(tokens.decode(network.to_acceptor[-1]).token, 254)

    def test_path_that_is_dead(self) -> None:
        """Without an answer it fails at the end of its lifetime, having repeated as DESIGN 4 says."""
        network = chatty(LONG, lifetime=2.0)
        network.loss = 1.0
        network.run(5.0)
        self.assertEqual(network.exchange.failed, "no answer within 2 s")
        self.assertAlmostEqual(network.now, 2.0)
        self.assertEqual(len(network.to_acceptor), 1 + 6 + 2)
        self.assertEqual((network.exchange.advance(3.0), network.exchange.deadline()), ([], math.inf))


class NoiseTests(SynchronousTestCase):
    """The mechanism noise, one datagram each way."""

    def test_one_round_trip(self) -> None:
        """The answer establishes the context, and draws nothing more."""
        exchange = noise_exchange()
        answer = answer_to(exchange.start(0.0))
        self.assertIsNone(exchange.context)
        self.assertEqual(exchange.receive(tokens.decode(answer), 0.01), [])
        assert exchange.context is not None
        self.assertTrue(exchange.context.established)
        self.assertEqual(exchange.receive(tokens.decode(answer), 0.02), [])

    def test_forged_answer(self) -> None:
        """After forged answers of every kind the true one still completes the exchange."""
        exchange = noise_exchange()
        answer = answer_to(exchange.start(0.0))
        forged = (
            answer[:-1] + b"x",
            answer[:33] + b"\2" + answer[34:],
            answer[:33] + b"\1",
            answer[:7] + b"\3" + answer[8:],
        )
        for datagram in forged:
            try:
                exchange.receive(tokens.decode(datagram), 0.01)
            except RemoteError:
                self.assertIsNone(exchange.context)
        exchange.receive(tokens.decode(answer), 0.02)
        self.assertIsNotNone(exchange.context)

    def test_forged_acknowledgement(self) -> None:
        """An acknowledgement that anybody may have sent does not end the repetitions."""
        exchange = noise_exchange()
        first = exchange.start(0.0)
        forged = Envelope(Mechanism.NOISE, EXCHANGE_ID).acknowledgement(0, 1)
        self.assertEqual(exchange.receive(tokens.decode(forged), 0.01), [])
        self.assertEqual(exchange.advance(0.1), first)

    def test_forged_rejection(self) -> None:
        """A rejection ends nothing early; if no answer comes it is told as a hint."""
        exchange = noise_exchange()
        (first,) = exchange.start(0.0)
        answer = answer_to([first])
        rejection = tokens.decode(tokens.reject(tokens.decode(first), Rejected.REFUSED))
        self.assertEqual(exchange.receive(rejection, 0.01), [])
        self.assertEqual(exchange.advance(0.1), [first])
        self.assertIsNone(exchange.failed)
        exchange.receive(tokens.decode(answer), 0.2)
        self.assertIsNotNone(exchange.context)

        exchange = noise_exchange()
        exchange.start(0.0)
        exchange.receive(rejection, 0.01)
        exchange.advance(2.0)
        self.assertEqual(exchange.failed, "no answer within 2 s; an unauthenticated message said: refused")

    def test_hint_of_a_wrong_key(self) -> None:
        """An answer that does not authenticate is told when the time is over."""
        exchange = noise_exchange()
        answer = answer_to(exchange.start(0.0))
        self.assertRaises(RemoteError, exchange.receive, tokens.decode(answer[:-1] + b"x"), 0.01)
        exchange.advance(2.0)
        self.assertEqual(exchange.failed, "no answer within 2 s; an answer did not authenticate")

    def test_not_for_it(self) -> None:
        """Its own messages reflected, and those of another mechanism, are refused."""
        exchange = noise_exchange()
        first = exchange.start(0.0)
        answer = answer_to(first)
        for datagram in (*first, answer[:6] + b"\2" + answer[7:]):
            error = self.assertRaises(RemoteError, exchange.receive, tokens.decode(datagram), 0.01)
            self.assertEqual(error.reason, DropReason.UNKNOWN_EXCHANGE)

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(st.data())
    def test_mutants(self, data: st.DataObject) -> None:
        """Mutated answers raise nothing but RemoteError, and the true one still completes the exchange."""
        exchange = noise_exchange()
        answer = bytearray(answer_to(exchange.start(0.0)))
        mutant = answer.copy()
        for _ in range(data.draw(st.integers(1, 4))):
            mutant[data.draw(st.integers(0, len(mutant) - 1))] ^= data.draw(st.integers(1, 255))
        with contextlib.suppress(RemoteError):
            exchange.receive(tokens.decode(bytes(mutant[: data.draw(st.integers(30, len(mutant)))])), 0.01)
        exchange.receive(tokens.decode(bytes(answer)), 0.02)
        self.assertIsNotNone(exchange.context)


class CookieTests(SynchronousTestCase):
    """A demand for a cookie begins the exchange anew, bound to it."""

    def demand(self, first: bytes, cookie: bytes) -> tokens.Message:
        """Return the demand that `first` drew."""
        return tokens.decode(tokens.demand(tokens.decode(first), cookie))

    def test_obeyed(self) -> None:
        """The first token is another one, bound to the cookie, and its answer completes the exchange."""
        exchange = noise_exchange()
        (first,) = exchange.start(0.0)
        (second,) = exchange.receive(self.demand(first, b"c" * 16), 0.01)
        self.assertEqual(tokens.cookie_of(tokens.decode(second), [b"c" * 16]), b"c" * 16)
        self.assertRaises(RemoteError, answer_to, [second], b"")
        exchange.receive(tokens.decode(answer_to([second], b"c" * 16)), 0.02)
        self.assertIsNotNone(exchange.context)

    def test_same_cookie_twice(self) -> None:
        """A duplicate of a demand changes nothing; what is repeated is the newest token."""
        exchange = noise_exchange()
        (first,) = exchange.start(0.0)
        (second,) = exchange.receive(self.demand(first, b"c" * 16), 0.01)
        self.assertEqual(exchange.receive(self.demand(first, b"c" * 16), 0.02), [])
        self.assertAlmostEqual(exchange.deadline(), 0.11)
        self.assertEqual(exchange.advance(0.11), [second])

    def test_bounded(self) -> None:
        """No more than three demands are obeyed in one exchange."""
        exchange = noise_exchange()
        (first,) = exchange.start(0.0)
        replies = [exchange.receive(self.demand(first, bytes([n]) * 16), 0.01) for n in range(10)]
        self.assertEqual([len(reply) for reply in replies], [1] * MAX_COOKIES + [0] * 7)

    def test_forged_demand(self) -> None:
        """An answer under way when a forged demand arrives still completes the exchange."""
        exchange = noise_exchange()
        (first,) = exchange.start(0.0)
        answer = answer_to([first])
        exchange.receive(self.demand(first, b"f" * 16), 0.01)
        exchange.receive(tokens.decode(answer), 0.02)
        self.assertIsNotNone(exchange.context)

    def test_answer_without_mac(self) -> None:
        """Under a cookie an answer needs the MAC."""
        exchange = noise_exchange()
        (first,) = exchange.start(0.0)
        (second,) = exchange.receive(self.demand(first, b"c" * 16), 0.01)
        answer = bytearray(answer_to([second], b"c" * 16))
        answer[16:32] = b"x" * 16
        error = self.assertRaises(RemoteError, exchange.receive, tokens.decode(bytes(answer)), 0.02)
        self.assertEqual(error.reason, DropReason.BAD_COOKIE)

    def test_after_the_end(self) -> None:
        """A demand after the context is established, or after the failure, begins nothing."""
        done, failed = noise_exchange(), noise_exchange()
        (first,) = done.start(0.0)
        done.receive(tokens.decode(answer_to([first])), 0.01)
        failed.start(0.0)
        failed.advance(2.0)
        for exchange in (done, failed):
            self.assertEqual(exchange.receive(self.demand(first, b"c" * 16), 2.1), [])

    def test_only_the_first_fragment_without_cookie(self) -> None:
        """Of a long first token one fragment goes out until a cookie is there, then all (DESIGN 4)."""

        def new_context(cookie: bytes) -> SecurityContext:
            return ChattyContext(LONG, cookie, initiator=True)

        exchange = InitiatorExchange(EXCHANGE_ID, Mechanism.TLS, new_context, 0.0)
        (first,) = exchange.start(0.0)
        self.assertEqual(exchange.advance(0.1), [first])
        all_of_them = exchange.receive(self.demand(first, b"c" * 16), 0.15)
        self.assertEqual(len(all_of_them), 4)
        for datagram in all_of_them:
            self.assertEqual(tokens.cookie_of(tokens.decode(datagram), [b"c" * 16]), b"c" * 16)


class OrderTests(SynchronousTestCase):
    """Tokens alternate."""

    def test_out_of_turn(self) -> None:
        """A later token than the one awaited is refused, an earlier one is passed over."""
        exchange = noise_exchange()
        answer = answer_to(exchange.start(0.0))
        envelope = Envelope(Mechanism.NOISE, EXCHANGE_ID)
        self.assertRaises(
            RemoteError, exchange.receive, tokens.decode(envelope.fragments(3, b"later")[0]), 0.01
        )
        exchange.receive(tokens.decode(answer), 0.02)
        self.assertEqual(exchange.receive(tokens.decode(envelope.fragments(1, b"earlier")[0]), 0.03), [])
        for number in (3, 5, 255):
            datagram = envelope.fragments(number, b"later")[0]
            self.assertRaises(RemoteError, exchange.receive, tokens.decode(datagram), 0.03)
        self.assertIsNotNone(exchange.context)
