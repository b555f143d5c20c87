"""The exchanges that others began, by themselves: from the first token to the confirmation of the keys."""

from dataclasses import replace
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from rvpn.agenda import Agenda
from rvpn.constants import Mechanism
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import Action, Event, Initiation, Parameters, Path, SecurityContext, Send
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptances import Acceptances
from rvpn.keyexchange.acceptor import AcceptRequest
from rvpn.keyexchange.credentials import Authorize
from rvpn.keyexchange.tokens import CookieDemand, Fragment, Rejection
from rvpn.session.sessions import SAPair
from tests.unit.keyexchange_ends import ANSWER, PATH, first, noise_acceptor, path


class Node:
    """An `Owner` that answers everybody, unless the test says otherwise, and notes what it hears."""

    def __init__(self) -> None:
        self.answer = ANSWER
        self.opens = self.knows = True
        self.opened: list[SAPair] = []
        self.refusals: list[RemoteError] = []

    def context(self, mechanism: Mechanism, request: AcceptRequest, authorize: Authorize) -> SecurityContext:
        """Return the gateway's end."""
        return noise_acceptor(prologue=request.cookie, authorize=authorize)

    def authorize(self, request: AcceptRequest, initiation: Initiation) -> Parameters:
        """Answer as the test says."""
        if not self.knows:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "nobody has this key")
        return self.answer

    def accepted(self, context: SecurityContext, path: Path, now: float) -> SAPair:
        """Open the keys, or refuse to."""
        if not self.opens:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "the policy no longer has it")
        self.opened.append(SAPair(context, initiator=False, path=path, now=now))
        return self.opened[-1]

    def declined(self, context: SecurityContext) -> list[Action]:
        """Tell of it."""
        return [Event(context.own_parameters.refusal)]

    def exchange_refused(self, error: RemoteError, path: Path, now: float) -> list[Action]:
        """Note it."""
        self.refusals.append(error)
        return []


class AcceptancesTests(SynchronousTestCase):
    """One node, and whoever begins an exchange with it."""

    def setUp(self) -> None:
        """Begin with nothing known of anybody."""
        self.node, self.agenda = Node(), Agenda()
        self.acceptances = Acceptances(self.node, [Mechanism.NOISE], self.agenda, Random(1), 0.0)

    def receive(self, datagram: bytes, way: Path = PATH) -> list[Action]:
        """Let a datagram arrive."""
        return self.acceptances.receive(tokens.decode(datagram), way, 0.0)

    def ask(self, way: Path = PATH) -> list[Action]:
        """Begin an exchange, with a cookie, which the first one of a peer takes; return what it draws."""
        (demand,) = self.receive(first()[0], way)
        assert isinstance(demand, Send)
        message = tokens.decode(demand.datagram)
        assert isinstance(message, CookieDemand)
        return self.receive(first(cookie=message.cookie)[0], way)

    def test_confirmed(self) -> None:
        """Keys are opened, wait for the packet that confirms them, and the exchange is forgotten then."""
        (answer,) = self.ask()
        assert isinstance(answer, Send)
        self.assertIsInstance(tokens.decode(answer.datagram), Fragment)
        (pair,) = self.node.opened
        self.assertEqual((len(self.acceptances), len(self.acceptances.acceptor)), (1, 1))
        self.assertTrue(self.acceptances.confirmed(pair))
        self.assertEqual((len(self.acceptances), len(self.acceptances.acceptor)), (0, 0))
        self.assertFalse(self.acceptances.confirmed(pair), "only once")
        self.assertFalse(self.acceptances.closed(pair), "nor does it wait when it closes at last")

    def test_closed(self) -> None:
        """Keys that nobody confirmed in time wait no more."""
        self.ask()
        self.assertTrue(self.acceptances.closed(self.node.opened[0]))
        self.assertEqual(len(self.acceptances), 0)

    def test_recording(self) -> None:
        """The same first message draws a cookie again: its timestamp is not newer. Others' are forgotten."""
        self.ask()
        (demand,) = self.receive(first(exchange_id=b"recorded")[0], path(9))
        assert isinstance(demand, Send)
        self.assertIsInstance(tokens.decode(demand.datagram), CookieDemand)
        self.assertEqual(len(self.node.opened), 1)

    def test_unknown(self) -> None:
        """Of whom the owner does not know no timestamp is kept, and the refusal is told."""
        self.node.knows = False
        (rejection,) = self.receive(first()[0])
        assert isinstance(rejection, Send)
        self.assertIsInstance(tokens.decode(rejection.datagram), Rejection)
        self.assertEqual([str(e) for e in self.node.refusals], ["authentication-failed: nobody has this key"])
        self.assertEqual(self.acceptances._freshness._newest, {})

    def test_declined(self) -> None:
        """Who is known and refused is answered, and no keys are opened."""
        self.node.answer = replace(ANSWER, refusal="it is draining")
        answer, event = self.ask()
        self.assertIsInstance(answer, Send)
        self.assertEqual(event, Event("it is draining"))
        self.assertEqual((self.node.opened, len(self.acceptances)), ([], 0))

    def test_no_longer(self) -> None:
        """Keys that may not be opened any more are refused, and their answer is not sent."""
        self.node.opens = False
        (rejection,) = self.ask()
        assert isinstance(rejection, Send)
        self.assertIsInstance(tokens.decode(rejection.datagram), Rejection)
        self.assertEqual(len(self.node.refusals), 1)
        self.assertEqual((len(self.acceptances), len(self.acceptances.acceptor)), (0, 0))

    def test_forget(self) -> None:
        """What came from one address can be forgotten."""
        self.ask()
        self.assertEqual(self.acceptances.forget(path(9).remote.address), [])
        self.assertEqual(self.acceptances.forget(PATH.remote.address), self.node.opened)
        self.assertEqual(len(self.acceptances), 0)
