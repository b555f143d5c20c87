"""
One end of one exchange under one cookie: tokens between a security context and datagrams (DESIGN 4).

    fragment -> Incoming -> whole token -> context.step -> answer -> Outgoing -> datagrams, until acknowledged

Tokens alternate, so token n + 1 tells that token n has arrived whole; a fragment that completes nothing
draws an acknowledgement instead, and so does the last token. A duplicate of the peer's last token draws our
answer again, or an acknowledgement where the answer takes several datagrams, which its own timer repeats.
"""

import math

from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import SecurityContext
from rvpn.keyexchange.fragments import Incoming, Outgoing
from rvpn.keyexchange.tokens import MAX_TOKEN_NUMBER, Acknowledgement, Envelope, Fragment, Message


class Transport:
    """
    Carries the tokens of `context`.

    An acceptor repeats its tokens of its own accord only under a cookie, that is to an address that has
    proved to receive them; without one it is for the initiator to ask again. Therefore an initiator without
    a cookie need not acknowledge the last token.
    """

    def __init__(
        self,
        context: SecurityContext,
        mechanism: int,
        exchange_id: bytes,
        cookie: bytes,
        *,
        initiator: bool,
    ) -> None:
        self.context = context
        self.cookie = cookie
        self._envelope = Envelope(mechanism, exchange_id, cookie)
        self._initiator = initiator
        self._awaited = 1 if initiator else 0
        self._incoming = Incoming()
        self._outgoing: Outgoing | None = None

    @property
    def complete(self) -> bool:
        """Whether the context is established and the peer has all that it needs for its own."""
        ours_arrived = self._outgoing is None or self._outgoing.arrived
        return self.context.established and ours_arrived

    @property
    def due(self) -> float:
        """When `repeat` is to be called next, or infinity."""
        repeats = self._initiator or self.cookie
        return self._outgoing.due if self._outgoing and repeats else math.inf

    def start(self, now: float) -> list[bytes]:
        """
        Return the initiator's first token.

        Without a cookie only its first fragment goes: it is enough to be asked for one, and an acceptor
        keeps no fragments for an address that has proved nothing.
        """
        token = self.context.step(None)
        datagrams = self._envelope.fragments(0, token or b"")
        self._outgoing = Outgoing(datagrams if self.cookie else datagrams[:1])
        return self._outgoing.send(now)

    def repeat(self, now: float) -> list[bytes]:
        """Return what is not acknowledged."""
        return self._outgoing.send(now) if self._outgoing else []

    def receive(self, message: Message, now: float) -> list[bytes]:
        """
        Take a fragment or an acknowledgement.

        Raises what `SecurityContext.step` raises; the token is gone then, and may come again.
        """
        if isinstance(message, Fragment):
            if message.token == self._awaited:
                return self._fragment(message, now)
            if message.token == self._awaited - 2:
                return self._again(message)
            if message.token > self._awaited:
                raise RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, "token out of turn")
        elif isinstance(message, Acknowledgement) and message.token == self._awaited - 1:
            self._acknowledged(message.bitmap)
        return []

    def _fragment(self, fragment: Fragment, now: float) -> list[bytes]:
        token = self._incoming.add(fragment)
        if token is None:
            return [self._envelope.acknowledgement(fragment.token, self._incoming.bitmap)]
        number = fragment.token + 1
        if number >= MAX_TOKEN_NUMBER:
            raise RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, "the exchange has no end")
        answer = self.context.step(token)
        self._awaited += 2
        self._outgoing = None
        if answer is None:
            return self._acknowledge_whole(fragment)
        self._outgoing = Outgoing(self._envelope.fragments(number, answer))
        return self._outgoing.send(now)

    def _acknowledged(self, bitmap: int) -> None:
        """Without a cookie anybody may have said so, and the answer tells; only a last token draws none."""
        if self._outgoing and (self.cookie or self.context.established):
            self._outgoing.acknowledge(bitmap)

    def _again(self, fragment: Fragment) -> list[bytes]:
        if self._outgoing and len(self._outgoing.datagrams) == 1:
            return self._outgoing.datagrams
        return self._acknowledge_whole(fragment)

    def _acknowledge_whole(self, fragment: Fragment) -> list[bytes]:
        if self._initiator and not self.cookie:
            return []
        return [self._envelope.acknowledgement(fragment.token, (1 << fragment.count) - 1)]
