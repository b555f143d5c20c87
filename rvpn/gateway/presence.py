"""
Who owns a client's inner addresses on the LAN, as one gateway sees it (DESIGN 8).

    claim with a generation newer than any before -> Announce, twice more after ANNOUNCE_AGAIN -> `owns`
    foreign announcement, clock jump -> doubt: Withdraw, and `owner?` to the client, again until
        -> a claim: Announce
        -> another answer: forgotten
        -> none to OWNER_QUESTIONS: no more questions until the client asks whether this gateway lives

Gateways do not speak with each other: each believes the client alone, and what it hears on the LAN only makes
it ask. A gateway in doubt is silent from the first moment. The usual reason for doubt is that another gateway
got a newer claim, and silence can be mended: hosts that ask meanwhile learn the address from the announcement
that follows the client's answer. A wrong answer would mislead them for minutes.

A client answers `owner?` with a claim of a new generation. Repetitions of its last claim, which may have
waited in a socket while this process was stopped, have the old one and take nothing back.
"""

from collections.abc import Callable, Hashable, Iterable

from rvpn.agenda import Agenda, Appointment
from rvpn.interfaces import Action, Announce, IPAddress, Withdraw
from rvpn.rate import Rate
from rvpn.session.sessions import Session

#: Seconds between an announcement and the next: hosts may miss one.
ANNOUNCE_AGAIN = 0.1, 0.9
#: Seconds by which an announcement is late where this process slept: no client gives a gateway up faster.
SLEPT = 0.05
#: Announcements of one client in a second that its claims draw at once; those beyond wait for ANNOUNCE_AGAIN.
ANNOUNCEMENTS = 10
#: How often a client is asked in one doubt, a response time apart.
OWNER_QUESTIONS = 4

#: Asks the client of a session, at a time, whether it uses this gateway; returns what is to be sent.
Ask = Callable[[Session, float], Iterable[Action]]


class _Ownership:
    """The inner addresses of one client, which claimed them over `session`."""

    __slots__ = ("_ahead", "addresses", "announcements", "doubted", "may_ask_at", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.addresses: tuple[IPAddress, ...] = ()
        self.doubted = False
        self.may_ask_at = float("-inf")
        self.announcements = Rate(ANNOUNCEMENTS)
        self._ahead: Appointment | None = None

    def plan(self, appointment: Appointment | None) -> None:
        """Let `appointment` be all that is still to come of what happened."""
        if self._ahead is not None:
            self._ahead.cancel()
        self._ahead = appointment

    @property
    def asked_in_vain(self) -> bool:
        """Whether the client answered no question, and is asked none now."""
        return self.doubted and self._ahead is None


class Presence:
    """
    See the module.

    `newest` holds the newest generation of each client by its session's key; the caller removes the clients
    that no longer exist. `response_time`, in seconds, is what a client may take for an answer.
    """

    def __init__(self, ask: Ask, response_time: float, agenda: Agenda) -> None:
        self.newest: dict[Hashable, int] = {}
        self.response_time = response_time
        self._ask = ask
        self._agenda = agenda
        self._by_client: dict[Hashable, _Ownership] = {}
        self._by_address: dict[bytes, _Ownership] = {}

    def owns(self, address: bytes) -> bool:
        """Tell whether this gateway is to answer for an address (packed) on the LAN now."""
        ownership = self._by_address.get(address)
        return ownership is not None and not ownership.doubted

    def claimed(self, session: Session, generation: int, now: float) -> list[Action]:
        """Hear that the client uses this gateway; repetitions and older claims are ignored."""
        if session.closed or generation <= self.newest.get(session.key, -1):
            return []
        self.newest[session.key] = generation
        ownership = self._by_client.setdefault(session.key, _Ownership(session))
        gone = [address for address in self._held(ownership) if address not in session.inner_addresses]
        withdrawn = self._withdraw(ownership, gone)
        for address in gone:
            del self._by_address[address.packed]
        ownership.session, ownership.addresses = session, session.inner_addresses
        self._by_address |= dict.fromkeys(session.packed_addresses, ownership)
        ownership.doubted = False
        announced = self._announce(ownership, ANNOUNCE_AGAIN, now)
        return withdrawn + (announced if ownership.announcements.allows(now) else [])

    def released(self, session: Session) -> list[Action]:
        """Hear that `session` has ended, or that its client says it does not use this gateway."""
        ownership = self._by_client.get(session.key)
        if ownership is None or ownership.session is not session:
            return []
        withdrawn = self._withdraw(ownership, self._held(ownership))
        self._forget(ownership)
        return withdrawn

    def contradicted(self, address: IPAddress, now: float) -> list[Action]:
        """Hear that another machine on the LAN announced `address`."""
        ownership = self._by_address.get(address.packed)
        return [] if ownership is None else self._doubt(ownership, now)

    def clock_jumped(self, now: float) -> list[Action]:
        """Hear that this process slept: nothing is certain any more."""
        everything = list(self._by_client.values())
        return [action for ownership in everything for action in self._doubt(ownership, now)]

    def heard(self, session: Session, now: float) -> list[Action]:
        """
        Hear that the client asked whether this gateway lives: it uses it then, so ask again whether it does
        if it answered in no way before.
        """
        ownership = self._by_client.get(session.key)
        if ownership is None or not ownership.asked_in_vain:
            return []
        return self._question(ownership, 1, now)

    def _held(self, ownership: _Ownership) -> list[IPAddress]:
        """Return the client's addresses but those that went to another client since."""
        held_by = self._by_address.get
        return [address for address in ownership.addresses if held_by(address.packed) is ownership]

    def _forget(self, ownership: _Ownership) -> None:
        ownership.plan(None)
        for address in self._held(ownership):
            del self._by_address[address.packed]
        del self._by_client[ownership.session.key]

    # --- on the LAN ---------------------------------------------------------------------------------------

    def _announce(self, ownership: _Ownership, again: tuple[float, ...], now: float) -> list[Action]:
        ownership.plan(self._announce_at(now + again[0], ownership, again[1:]) if again else None)
        return [Announce(address) for address in self._held(ownership)]

    def _announce_at(self, when: float, ownership: _Ownership, again: tuple[float, ...]) -> Appointment:
        """Plan a repetition; one that comes late shows that this process slept, and may be false by now."""

        def announce(now: float) -> list[Action]:
            late = now - when > SLEPT
            return self._doubt(ownership, now) if late else self._announce(ownership, again, now)

        return self._agenda.at(when, announce)

    def _withdraw(self, ownership: _Ownership, addresses: Iterable[IPAddress]) -> list[Action]:
        return [] if ownership.doubted else [Withdraw(address) for address in addresses]

    # --- doubt --------------------------------------------------------------------------------------------

    def _doubt(self, ownership: _Ownership, now: float) -> list[Action]:
        if ownership.doubted:
            return []
        withdrawn = self._withdraw(ownership, self._held(ownership))
        ownership.doubted = True
        return withdrawn + self._question(ownership, OWNER_QUESTIONS, now)

    def _question(self, ownership: _Ownership, left: int, now: float) -> list[Action]:
        """Ask the client until it answers or was asked often enough, at most once per response time."""
        asked: list[Action] = []
        if now >= ownership.may_ask_at:
            if not left:
                ownership.plan(None)
                return []
            left -= 1
            ownership.may_ask_at = now + self.response_time
            asked += self._ask(ownership.session, now)
        when = ownership.may_ask_at
        ownership.plan(self._agenda.at(when, lambda later: self._question(ownership, left, later)))
        return asked
