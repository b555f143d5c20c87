"""What a node offers in a key exchange, what it answers, and which answer a client takes (DESIGN 4)."""

from dataclasses import replace
from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import MIN_KEY_LIFETIME, TransformID
from rvpn.interfaces import Parameters
from rvpn.keyexchange.terms import Terms, complaint
from rvpn.policy.model import Policy

AES, CHACHA = TransformID.AES_GCM_16_256, TransformID.CHACHA20_POLY1305
INNER = ip_address("10.99.0.1")


def terms(*transforms: TransformID, key_lifetime: float = 7200.0) -> Terms:
    """Return the terms of a policy."""
    made = Terms()
    made.policy = Policy(transforms=transforms or None, key_lifetime=key_lifetime)
    return made


class TermsTests(SynchronousTestCase):
    """Both ends of an exchange."""

    def test_first_choice(self) -> None:
        """Of the transforms that both have, the initiator's first is taken."""
        for ours, theirs, taken in (
            ((AES, CHACHA), (CHACHA, AES), (CHACHA,)),
            ((AES, CHACHA), (AES,), (AES,)),
            ((AES,), (CHACHA, AES), (AES,)),
            ((AES,), (CHACHA,), ()),
        ):
            offer = terms(*theirs).offer(1000, [INNER])
            self.assertEqual(terms(*ours).answer(2000, offer, "").transforms, taken)

    def test_left_to_us(self) -> None:
        """A policy without Transforms offers all, the fastest of this machine first."""
        ours = terms()
        ours.fastest_first = (CHACHA, AES)
        self.assertEqual(ours.offer(1000, [INNER]).transforms, (CHACHA, AES))

    def test_shorter_lifetime(self) -> None:
        """The shorter of the two key lifetimes is granted."""
        for ours, theirs in (60.0, 7200.0), (7200.0, 60.0):
            offer = terms(key_lifetime=theirs).offer(1000, [INNER])
            self.assertEqual(terms(key_lifetime=ours).answer(2000, offer, "").lifetime, 60.0)

    def test_refusal(self) -> None:
        """Who is refused is granted no address."""
        answer = terms().answer(2000, terms().offer(1000, [INNER]), "it is draining")
        self.assertEqual((answer.refusal, answer.inner_addresses), ("it is draining", ()))

    def test_own_answers_are_taken(self) -> None:
        """A client takes what terms like its own answer."""
        offer = terms().offer(1000, [INNER])
        self.assertEqual(complaint(offer, terms().answer(2000, offer, "")), "")

    def test_complaints(self) -> None:
        """What was not offered is not taken, each for a reason that is told."""
        offer = terms(AES).offer(1000, [INNER])
        answer = terms(AES).answer(2000, offer, "")
        wrong: dict[str, list[Parameters]] = {
            "transform": [replace(answer, transforms=t) for t in ((), (CHACHA,), (AES, CHACHA))],
            "inner addresses": [replace(answer, inner_addresses=(INNER, INNER + 1))],
            "lifetime": [replace(answer, lifetime=t) for t in (MIN_KEY_LIFETIME / 2, 7201.0, float("nan"))],
            "HeartbeatAuthentication": [replace(answer, literal_heartbeats=True)],
        }
        for about, answers in wrong.items():
            for one in answers:
                self.assertIn(about, complaint(offer, one))
