"""`rvpn.keyexchange.acceptor`: answers, rejections, recordings and forged tokens."""

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import Mechanism
from rvpn.errors import CookieRequired, DropReason, RemoteError
from rvpn.interfaces import Initiation, Parameters, Send
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptor import (
    HALF_OPEN_TIME,
    Acceptor,
    AcceptRequest,
    Established,
    Reply,
)
from rvpn.keyexchange.cookies import ROTATION
from rvpn.keyexchange.keys import derive
from rvpn.keyexchange.tokens import Envelope, Fragment, Rejection
from tests.unit.keyexchange_ends import (
    ANSWER,
    EXCHANGE_ID,
    PATH,
    ChattyContext,
    Gateway,
    chatty,
    first,
    only,
    path,
    stepped,
)


class AnswerTests(SynchronousTestCase):
    """A first message from a client we know."""

    def test_established(self) -> None:
        """It is answered at once, and both ends have the same keys."""
        datagram, client = first()
        reply = Gateway().receive(datagram)
        answer = only(reply)
        assert isinstance(answer, Fragment)
        client.step(answer.data)
        assert reply.established is not None
        self.assertEqual(reply.established.path, PATH)
        self.assertEqual(derive(reply.established.context), derive(client))
        self.assertIsNone(reply.refused)

    def test_duplicate(self) -> None:
        """A duplicate draws the same answer from the cache, and establishes nothing again."""
        gateway, (datagram, _) = Gateway(), first()
        one, two = gateway.receive(datagram), gateway.receive(datagram, now=0.1)
        self.assertEqual(one.datagrams, two.datagrams)
        self.assertIsNone(two.established)
        self.assertEqual(len(gateway.acceptor), 1)

    def test_forged_duplicate(self) -> None:
        """A message with the id of an exchange neither harms it nor draws more than it has bytes."""
        gateway, (datagram, _) = Gateway(), first()
        answer = gateway.receive(datagram).datagrams
        self.assertEqual(gateway.receive(datagram[:-1] + b"x").datagrams, answer)
        error = self.assertRaises(RemoteError, gateway.receive, datagram[:40])
        self.assertEqual(error.reason, DropReason.MALFORMED_KEY_EXCHANGE)
        self.assertEqual(gateway.receive(datagram).datagrams, answer)

    def test_nothing_of_its_own_accord(self) -> None:
        """An unproven address gets nothing that it did not ask for, and the exchange is forgotten in time."""
        gateway, (datagram, _) = Gateway(), first()
        gateway.receive(datagram)
        self.assertEqual(gateway.agenda.deadline(), HALF_OPEN_TIME)
        self.assertEqual(gateway.agenda.advance(HALF_OPEN_TIME), [])
        self.assertEqual(len(gateway.acceptor), 0)

    def test_confirmed(self) -> None:
        """Once confirmed the exchange is forgotten, and a late duplicate draws a cookie."""
        gateway, (datagram, _) = Gateway(), first()
        established = gateway.receive(datagram).established
        assert established is not None
        gateway.acceptor.confirmed(established)
        gateway.acceptor.confirmed(established)
        self.assertEqual((len(gateway.acceptor), len(gateway.agenda)), (0, 0))
        gateway.demanded(datagram)

    def test_repeats_to_a_proven_address(self) -> None:
        """Under a cookie the answer is repeated until acknowledged."""
        gateway = Gateway()
        gateway.receive(first()[0])
        cookie = gateway.demanded(first(b"another!")[0])
        datagram, _ = first(b"another!", cookie)
        (answer,) = gateway.receive(datagram).datagrams
        self.assertEqual(gateway.agenda.advance(0.1), [Send(answer, PATH)])
        gateway.receive(Envelope(Mechanism.NOISE, b"another!", cookie).acknowledgement(1, 1), now=0.11)
        self.assertEqual(gateway.agenda.deadline(), HALF_OPEN_TIME)


class RejectionTests(SynchronousTestCase):
    """What is refused is told, in no more bytes than were received."""

    def refused(self, gateway: Gateway, datagram: bytes) -> tuple[str, DropReason]:
        """Return what the peer is told, and what is counted."""
        reply = gateway.receive(datagram)
        rejection, error = only(reply), reply.refused
        assert isinstance(rejection, Rejection)
        assert error is not None
        self.assertEqual(rejection.exchange_id, EXCHANGE_ID)
        self.assertEqual(len(gateway.acceptor), 0)
        return rejection.text, error.reason

    def test_unknown_mechanism(self) -> None:
        """A mechanism that is not configured."""
        datagram = first()[0]
        told = self.refused(Gateway(), datagram[:6] + b"\x63" + datagram[7:])
        self.assertEqual(told, ("unknown mechanism", DropReason.MALFORMED_KEY_EXCHANGE))

    def test_no_identity(self) -> None:
        """A mechanism for which this node has no identity: its log calls it by its name."""
        reply = Gateway().receive(Envelope(Mechanism.TLS, EXCHANGE_ID).fragments(0, bytes(200))[0])
        self.assertIn("no identity here for mechanism tls", str(reply.refused))

    def test_forged(self) -> None:
        """A token that does not authenticate."""
        told = self.refused(Gateway(), first()[0][:-1] + b"x")
        self.assertEqual(told, ("authentication failed", DropReason.AUTHENTICATION_FAILED))

    def test_not_authorized(self) -> None:
        """Whatever reason the decision gives is counted; the peer hears `refused`, or `busy`."""
        for reason, text in ((DropReason.WRONG_SOURCE, "refused"), (DropReason.TOO_MANY_EXCHANGES, "busy")):

            def refuse(
                request: AcceptRequest, initiation: Initiation, reason: DropReason = reason
            ) -> Parameters:
                raise RemoteError(reason)

            self.assertEqual(self.refused(Gateway(refuse), first()[0]), (text, reason))

    def test_unknown_exchange(self) -> None:
        """A later token, or an acknowledgement, of an exchange that is not there draws nothing."""
        envelope = Envelope(Mechanism.NOISE, EXCHANGE_ID)
        answer, demand = envelope.fragments(1, b"")[0], tokens.demand(tokens.decode(first()[0]), bytes(16))
        for datagram in (envelope.fragments(2, b"")[0], envelope.acknowledgement(1, 1), answer, demand):
            error = self.assertRaises(RemoteError, Gateway().receive, datagram)
            self.assertEqual(error.reason, DropReason.UNKNOWN_EXCHANGE)

    def test_reflected(self) -> None:
        """Its own answer, sent back, draws nothing."""
        gateway = Gateway()
        (answer,) = gateway.receive(first()[0]).datagrams
        error = self.assertRaises(RemoteError, gateway.receive, answer)
        self.assertEqual(error.reason, DropReason.UNKNOWN_EXCHANGE)


class RecordingTests(SynchronousTestCase):
    """A recorded first message is worthless (DESIGN 4)."""

    def test_draws_a_cookie(self) -> None:
        """Replayed from anywhere it draws a cookie and leaves nothing behind; a client comes in with one."""
        gateway, (recording, _) = Gateway(), first()
        established = gateway.receive(recording).established
        assert established is not None
        gateway.acceptor.confirmed(established)
        for way in (PATH, path(9)):
            cookie = gateway.demanded(recording, way)
        self.assertEqual(len(gateway.acceptor), 0)
        self.assertRaises(RemoteError, self.replay_with, gateway, recording, cookie)
        fresh, _ = first(b"another!", gateway.demanded(first(b"another!")[0]))
        self.assertIsNotNone(gateway.receive(fresh).established)

    def replay_with(self, gateway: Gateway, recording: bytes, cookie: bytes) -> None:
        """Send the recorded token under a cookie that it is not bound to."""
        message = tokens.decode(recording)
        assert isinstance(message, Fragment)
        reply = gateway.receive(
            Envelope(Mechanism.NOISE, EXCHANGE_ID, cookie).fragments(0, message.data)[0], path(9)
        )
        if reply.refused is not None:
            raise reply.refused

    def test_after_a_restart(self) -> None:
        """After a restart no timestamp is known and the secret is new: no recording is accepted."""
        before = Gateway(seed=1)
        before.receive(first()[0])
        cookie = before.demanded(first(b"another!")[0])
        with_cookie, _ = first(b"another!", cookie)
        self.assertIsNotNone(before.receive(with_cookie).established)

        def restarted(request: AcceptRequest, initiation: Initiation) -> Parameters:
            if not request.cookie:
                raise CookieRequired
            return ANSWER

        after = Gateway(restarted, seed=2)
        after.demanded(first()[0])
        error = self.assertRaises(RemoteError, after.receive, with_cookie)
        self.assertEqual(error.reason, DropReason.BAD_COOKIE)

    def test_cookie_is_good_once(self) -> None:
        """A recorded first message with a good cookie begins nothing, however long the cookie is good."""
        gateway = Gateway()
        gateway.receive(first()[0])
        datagram, _ = first(b"another!", gateway.demanded(first(b"another!")[0]))
        established = gateway.receive(datagram).established
        assert established is not None
        gateway.acceptor.confirmed(established)
        for now in (0.0, ROTATION - 1, ROTATION + 1, 2 * ROTATION - 1):
            error = self.assertRaises(RemoteError, gateway.receive, datagram, now=now)
            self.assertEqual(error.reason, DropReason.REPLAYED)
        error = self.assertRaises(RemoteError, gateway.receive, datagram, now=2 * ROTATION + 1)
        self.assertEqual(error.reason, DropReason.BAD_COOKIE)


class ForgedTokenTests(SynchronousTestCase):
    """Forged tokens of exchanges that are under way."""

    def exchange(self) -> tuple[Acceptor, Envelope, ChattyContext]:
        """Return an acceptor that has answered token 0 and waits for token 2."""
        network = chatty((100, 100, 100, 100))
        cookie = network.acceptor._cookies.issue(PATH.remote, EXCHANGE_ID, 0.0)
        client = ChattyContext((100, 100, 100, 100), cookie, initiator=True)
        envelope = Envelope(Mechanism.TLS, EXCHANGE_ID, cookie)
        datagram = envelope.fragments(0, stepped(client, None))[0]
        answer = only(network.acceptor.receive(tokens.decode(datagram), PATH, 0.0))
        assert isinstance(answer, Fragment)
        self.third = stepped(client, answer.data)
        return network.acceptor, envelope, client

    def send(self, acceptor: Acceptor, datagram: bytes) -> Reply:
        """Deliver a datagram."""
        return acceptor.receive(tokens.decode(datagram), PATH, 0.1)

    def test_forged_third_token(self) -> None:
        """One that does not authenticate is rejected and the true one after it completes."""
        acceptor, envelope, _ = self.exchange()
        reply = self.send(acceptor, envelope.fragments(2, bytes(100))[0])
        assert reply.refused is not None
        self.assertEqual(reply.refused.reason, DropReason.AUTHENTICATION_FAILED)
        self.assertIsInstance(
            self.send(acceptor, envelope.fragments(2, self.third)[0]).established, Established
        )

    def test_forged_first_token(self) -> None:
        """A first token in several fragments that does not authenticate is forgotten with its exchange."""
        acceptor = chatty((2000, 100)).acceptor
        cookie = acceptor._cookies.issue(PATH.remote, EXCHANGE_ID, 0.0)
        envelope = Envelope(Mechanism.TLS, EXCHANGE_ID, cookie)
        replies = [self.send(acceptor, datagram) for datagram in envelope.fragments(0, bytes(2000))]
        self.assertIsInstance(only(replies[0]), tokens.Acknowledgement)
        self.assertIsInstance(only(replies[1]), Rejection)
        self.assertEqual(len(acceptor), 0)
        token = stepped(ChattyContext((2000, 100), cookie, initiator=True), None)
        replies = [self.send(acceptor, datagram) for datagram in envelope.fragments(0, token)]
        self.assertIsNotNone(replies[1].established)

    def test_without_mac(self) -> None:
        """An exchange under a cookie takes no token without its MAC."""
        acceptor, _, _ = self.exchange()
        plain = Envelope(Mechanism.TLS, EXCHANGE_ID).fragments(2, self.third)[0]
        error = self.assertRaises(RemoteError, self.send, acceptor, plain)
        self.assertEqual(error.reason, DropReason.UNKNOWN_EXCHANGE)
