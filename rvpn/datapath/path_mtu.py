"""
What the paths to the peers carry (DESIGN 3): how long the inner packets of a session may be.

    keys -> `begin`: as much as the outside link does
    ICMP, a datagram that was too long -> `learn`: less, for PATH_MTU_LIFETIME
    the outside link has another MTU -> `link_changed`: as much as it does now
"""

from collections.abc import Sequence

from rvpn.agenda import Agenda
from rvpn.constants import LINK_MTU, PATH_MTU_LIFETIME
from rvpn.interfaces import Action, Endpoint, Event, Fields
from rvpn.session.sessions import Session, SessionCache


class PathMTU:
    """See the module. Until `link_changed` says otherwise, the outside link is an Ethernet."""

    def __init__(self, cache: SessionCache, agenda: Agenda) -> None:
        self._link_mtu = LINK_MTU
        self._cache = cache
        self._agenda = agenda

    def begin(self, session: Session) -> None:
        """Let a session's packets be no longer than the link carries."""
        session.learn_path_mtu(self._link_mtu)

    def learn(self, remote: Endpoint, mtu: int, now: float) -> Sequence[Action]:
        """Hear that the path to `remote` carries no more than `mtu` bytes."""
        session = self._cache.by_endpoint.get(remote)
        if session is None or not session.learn_path_mtu(mtu):
            return ()
        learnt = session.inner_mtu
        self._agenda.at(now + PATH_MTU_LIFETIME, lambda _: self._forget(session, learnt))
        fields: Fields = {"remote": str(remote), "mtu": mtu, "inner": learnt}
        return [Event("the path to {remote} carries {mtu} bytes: inner packets of {inner}", fields)]

    def link_changed(self, link_mtu: int) -> None:
        """
        Hear the MTU in bytes of the outside link, the first of each path.

        If it is another one, what was learnt of paths is to be learnt anew.
        """
        if link_mtu == self._link_mtu:
            return
        self._link_mtu = link_mtu
        for session in {pair.session for pair in self._cache.by_spi.values()}:
            if session is not None:
                session.forget_path_mtu(link_mtu)

    def _forget(self, session: Session, learnt: int) -> Sequence[Action]:
        if session.inner_mtu == learnt:
            session.forget_path_mtu(self._link_mtu)
        return ()
