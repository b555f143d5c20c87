"""
One exchange at the end that begins it (DESIGN 4).

    start -> first token -> answers -> `context`, or `failed` when `lifetime` is over

A cookie demand begins another attempt, with a new context bound to that cookie. The earlier attempts go on
listening: a message belongs to the attempt whose cookie its MAC proves, so that neither a forged demand nor
a late answer spoils anything. Only the newest attempt repeats its tokens; if a token ends its context the
exchange has failed.
"""

import math
from collections.abc import Callable

from rvpn.constants import EXCHANGE_TIME, Mechanism
from rvpn.errors import ContextFailed, DropReason, RemoteError
from rvpn.interfaces import SecurityContext
from rvpn.keyexchange.tokens import CookieDemand, Message, Rejection, cookie_of
from rvpn.keyexchange.transport import Transport

#: Cookie demands obeyed in one exchange. One is usual, a second one follows if the secret changed meanwhile.
MAX_COOKIES = 3


class InitiatorExchange:
    """
    The exchange with `exchange_id` (8 random bytes).

    `new_context` makes a fresh context (new ephemeral key and timestamp) bound to the cookie it is called
    with, empty at first. Once `context` or `failed` is set nothing is due; while the exchange is kept,
    duplicates of the peer's last token are still acknowledged.
    """

    def __init__(
        self,
        exchange_id: bytes,
        mechanism: Mechanism,
        new_context: Callable[[bytes], SecurityContext],
        now: float,
        lifetime: float = EXCHANGE_TIME,
    ) -> None:
        self.exchange_id = exchange_id
        self.mechanism = mechanism
        self.failed: str | None = None
        self._new_context = new_context
        self._lifetime = lifetime
        self._expiry = now + lifetime
        self._attempts: list[Transport] = []
        self._established: SecurityContext | None = None
        self._hint = ""

    @property
    def context(self) -> SecurityContext | None:
        """The established context, once the peer has all that it needs."""
        return self._established

    def start(self, now: float) -> list[bytes]:
        """Return the datagrams that begin the exchange."""
        return self._attempt(b"", now)

    def receive(self, message: Message, now: float) -> list[bytes]:
        """
        Take a message with this exchange's id; return what to send.

        Raises RemoteError for what does not belong here; the exchange goes on.
        """
        if message.to_acceptor or message.mechanism != self.mechanism:
            raise RemoteError(DropReason.UNKNOWN_EXCHANGE, "not for this initiator")
        if isinstance(message, Rejection):
            self._hint = f"; an unauthenticated message said: {message.text}"
            return []
        if isinstance(message, CookieDemand):
            return self._obey(message.cookie, now)
        return self._carry(message, now)

    def deadline(self) -> float:
        """Return when `advance` is to be called next; never once the exchange is over."""
        return math.inf if self._over else min(self._expiry, self._attempts[-1].due)

    def advance(self, now: float) -> list[bytes]:
        """Repeat what was not acknowledged, or give up."""
        if self._over:
            return []
        if now >= self._expiry:
            self.failed = f"no answer within {self._lifetime:g} s{self._hint}"
            return []
        newest = self._attempts[-1]
        return newest.repeat(now) if now >= newest.due else []

    @property
    def _over(self) -> bool:
        return self._established is not None or self.failed is not None

    def _obey(self, cookie: bytes, now: float) -> list[bytes]:
        known = any(attempt.cookie == cookie for attempt in self._attempts)
        if self._over or known or len(self._attempts) > MAX_COOKIES:
            return []
        return self._attempt(cookie, now)

    def _attempt(self, cookie: bytes, now: float) -> list[bytes]:
        context = self._new_context(cookie)
        attempt = Transport(context, self.mechanism, self.exchange_id, cookie, initiator=True)
        self._attempts.append(attempt)
        return attempt.start(now)

    def _carry(self, message: Message, now: float) -> list[bytes]:
        cookie = cookie_of(message, [attempt.cookie for attempt in self._attempts])
        attempt = next(attempt for attempt in self._attempts if attempt.cookie == cookie)
        try:
            datagrams = attempt.receive(message, now)
        except ContextFailed as error:
            if attempt is self._attempts[-1] and not self._over:
                self.failed = f"an answer did not authenticate: {error.detail}"
            raise
        except RemoteError:
            self._hint = "; an answer did not authenticate"
            raise
        if attempt.complete and not self._over:
            self._established = attempt.context
        return datagrams
