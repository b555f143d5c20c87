"""`rvpn.keyexchange.cookies`: proof that an address receives what is sent to it."""

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import Mechanism
from rvpn.errors import DropReason, RemoteError
from rvpn.keyexchange import tokens
from rvpn.keyexchange.cookies import MAX_SPENT, ROTATION, Cookies
from rvpn.keyexchange.tokens import Envelope, Message
from tests.unit.keyexchange_ends import EXCHANGE_ID, PATH, Gateway, first, path


class CookieTests(SynchronousTestCase):
    """Cookies are bound to address, port, exchange id and secret."""

    def message(self, cookie: bytes, exchange_id: bytes = EXCHANGE_ID) -> Message:
        """Return a message with the MAC of `cookie`."""
        return tokens.decode(Envelope(Mechanism.NOISE, exchange_id, cookie).fragments(0, b"")[0])

    def test_bound(self) -> None:
        """One made for this address, port and exchange id is no good for another."""
        cookies, here = Cookies(Random(1), 0.0), PATH.remote
        cookie = cookies.issue(here, EXCHANGE_ID, 0.0)
        self.assertEqual(cookies.of(self.message(cookie), here, 0.0), cookie)
        others = (
            (here._replace(port=4501), EXCHANGE_ID),
            (path(1).remote, EXCHANGE_ID),
            (here, b"another!"),
        )
        for remote, exchange_id in others:
            error = self.assertRaises(RemoteError, cookies.of, self.message(cookie, exchange_id), remote, 0.0)
            self.assertEqual(error.reason, DropReason.BAD_COOKIE)
        self.assertRaises(RemoteError, Cookies(Random(2), 0.0).of, self.message(cookie), here, 0.0)

    def test_rotation(self) -> None:
        """A cookie is good until its secret has been replaced twice, or after a silence as long as that."""
        cookies, here = Cookies(Random(1), 0.0), PATH.remote
        cookie = cookies.issue(here, EXCHANGE_ID, ROTATION - 1)
        self.assertEqual(cookies.of(self.message(cookie), here, 2 * ROTATION - 1), cookie)
        self.assertRaises(RemoteError, cookies.of, self.message(cookie), here, 2 * ROTATION)
        cookie = cookies.issue(here, EXCHANGE_ID, 2 * ROTATION)
        self.assertRaises(RemoteError, cookies.of, self.message(cookie), here, 90 * ROTATION)

    def test_spent(self) -> None:
        """That a cookie is spent is known as long as it is good, and forgotten afterwards."""
        cookies, here = Cookies(Random(1), 0.0), PATH.remote
        cookie = cookies.issue(here, EXCHANGE_ID, 0.0)
        cookies.spend(cookie)
        cookies.issue(here, EXCHANGE_ID, 2 * ROTATION - 1)
        self.assertTrue(cookies.is_spent(cookie))
        cookies.issue(here, EXCHANGE_ID, 2 * ROTATION)
        self.assertFalse(cookies.is_spent(cookie))

    def test_full(self) -> None:
        """When no more can be remembered, exchanges with a cookie wait for the next secret."""
        gateway = Gateway()
        gateway.receive(first()[0])
        datagram, _ = first(b"another!", gateway.demanded(first(b"another!")[0]))
        for number in range(MAX_SPENT):
            gateway.acceptor._cookies.spend(number.to_bytes(16, "big"))
        reply = gateway.receive(datagram)
        assert reply.refused is not None
        self.assertEqual(reply.refused.reason, DropReason.TOO_MANY_EXCHANGES)
        self.assertIsNotNone(gateway.receive(datagram, now=ROTATION).established)
