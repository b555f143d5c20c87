"""
Cookies: an address proves that it receives what is sent to it, and costs no memory until then (DESIGN 4).

A cookie is a keyed hash of address, port and exchange id under a secret that is new at each start and every
`ROTATION` seconds; those under the secret before are still good. Which cookies were used up is remembered
as long as they are good.
"""

from hashlib import blake2b
from itertools import chain

from rvpn.interfaces import Endpoint, RandomSource
from rvpn.keyexchange.tokens import COOKIE, Message, cookie_of

#: Seconds for which new cookies are made under one secret; a cookie is good for once to twice as long.
ROTATION = 60.0
#: Cookies used up under one secret: about 270 exchanges per second.
MAX_SPENT = 16384

_SECRET = 32


class Cookies:
    """Makes and checks cookies, and remembers those used up."""

    def __init__(self, random: RandomSource, now: float) -> None:
        self._random = random
        self._rotated = now
        self._secrets = [random.randbytes(_SECRET)]
        self._spent: list[set[bytes]] = [set()]

    def issue(self, remote: Endpoint, exchange_id: bytes, now: float) -> bytes:
        """Return the cookie for this exchange with this endpoint."""
        self._rotate(now)
        return _cookie(self._secrets[0], remote, exchange_id)

    def of(self, message: Message, remote: Endpoint, now: float) -> bytes:
        """Return the cookie that the message proves, empty without a MAC. Raises RemoteError(BAD_COOKIE)."""
        self._rotate(now)
        issued = (_cookie(secret, remote, message.exchange_id) for secret in self._secrets)
        return cookie_of(message, chain([b""], issued))

    def spend(self, cookie: bytes) -> None:
        """Let a cookie be of no more use for a new exchange."""
        self._spent[0].add(cookie)

    def is_spent(self, cookie: bytes) -> bool:
        """Whether an exchange was completed with it."""
        return any(cookie in spent for spent in self._spent)

    @property
    def full(self) -> bool:
        """Whether no more can be remembered."""
        return len(self._spent[0]) >= MAX_SPENT

    def _rotate(self, now: float) -> None:
        """Keep the newest secret and the one before; after a long silence both are new."""
        periods = int((now - self._rotated) // ROTATION)
        self._rotated += periods * ROTATION
        for _ in range(min(periods, 2)):
            self._secrets = [self._random.randbytes(_SECRET), self._secrets[0]]
            self._spent = [set(), self._spent[0]]


def _cookie(secret: bytes, remote: Endpoint, exchange_id: bytes) -> bytes:
    bound = remote.address.packed + remote.port.to_bytes(2, "big") + exchange_id
    return blake2b(bound, key=secret, digest_size=COOKIE).digest()
