"""
What a node authenticates with, and the security contexts that it makes of that, for either mechanism.

    peer, role, cookie, parameters -> `Credentials.initiator` -> the context that begins an exchange
    peer, role, cookie, authorize  -> `Credentials.acceptor`  -> the context that answers one

Certificates come as an `Authenticator`, so that a node without any never imports `rvpn.keyexchange.tls`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rvpn.constants import Mechanism, Role
from rvpn.errors import LocalError
from rvpn.interfaces import (
    Authentication,
    Initiation,
    IPAddress,
    Parameters,
    PeerIdentity,
    RandomSource,
    RevocationState,
    SecurityContext,
)
from rvpn.keyexchange.keys import binding
from rvpn.keyexchange.noise import NO_PSK, NoiseAcceptor, NoiseInitiator
from rvpn.keyexchange.tai64n import tai64n

Authorize = Callable[[Initiation], Parameters]


class Authenticator(Protocol):
    """
    What a node has for the mechanism `tls` (`rvpn.keyexchange.tls`). Times of day are in seconds since 1970.
    """

    @property
    def name(self) -> str:
        """The name in this node's own certificate."""

    @property
    def ends(self) -> Mapping[str, float]:
        """When what this node has comes to its end: first its own certificate, then others, in words."""

    @property
    def lists(self) -> Mapping[bytes, RevocationState]:
        """What each authority has revoked, by the fingerprint of its certificate."""

    def initiator(
        self, peer: PeerIdentity, prologue: bytes, parameters: Parameters, time_of_day: float
    ) -> SecurityContext:
        """Return the context of an end that begins an exchange with `peer`."""

    def acceptor(
        self, peer: PeerIdentity | None, prologue: bytes, authorize: Authorize, time_of_day: float
    ) -> SecurityContext:
        """Return the context of an end that answers `peer`, or (None) whoever has a certificate."""

    def objection(self, authentication: Authentication, inner_addresses: Sequence[IPAddress]) -> str:
        """
        Return why a peer that authenticated before would be refused now, or (a client) with these addresses,
        empty if it would not.
        """


@dataclass(frozen=True, slots=True)
class Credentials:
    """
    The static private key of `noise` (empty: none), its preshared key (32 bytes, zero if there is none), and
    what there is for `tls`.
    """

    private_key: bytes = field(default=b"", repr=False)
    preshared_key: bytes = field(default=NO_PSK, repr=False)
    certificates: Authenticator | None = field(default=None, repr=False)

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """By which mechanisms this node can authenticate."""
        noise = (Mechanism.NOISE,) if self.private_key else ()
        return noise + ((Mechanism.TLS,) if self.certificates is not None else ())

    def initiator(
        self,
        peer: PeerIdentity,
        role: Role,
        cookie: bytes,
        parameters: Parameters,
        random: RandomSource,
        time_of_day: float,
    ) -> SecurityContext:
        """
        Return the context with which this node, of `role`, begins an exchange with `peer` under a cookie.

        Raises `LocalError` if it has nothing to authenticate with by that mechanism.
        """
        if peer.mechanism not in self.mechanisms:
            raise LocalError(f"this node has no identity for mechanism {peer.mechanism.name.lower()}")
        prologue = binding(peer.mechanism, role, cookie)
        if self.certificates is not None and peer.mechanism is Mechanism.TLS:
            return self.certificates.initiator(peer, prologue, parameters, time_of_day)
        return NoiseInitiator(
            private_key=self.private_key,
            peer=peer,
            ephemeral=random.randbytes(32),
            preshared_key=self.preshared_key,
            prologue=prologue,
            timestamp=tai64n(time_of_day),
            parameters=parameters,
        )

    def acceptor(
        self,
        mechanism: Mechanism,
        peer: PeerIdentity | None,
        role: Role,
        cookie: bytes,
        authorize: Authorize,
        random: RandomSource,
        time_of_day: float,
    ) -> SecurityContext:
        """
        Return the context with which this node answers an initiator of `role`.

        `peer` is who that has to be, as far as it is known; `authorize` has the last word.
        """
        prologue = binding(mechanism, role, cookie)
        if self.certificates is not None and mechanism is Mechanism.TLS:
            return self.certificates.acceptor(peer, prologue, authorize, time_of_day)
        return NoiseAcceptor(
            private_key=self.private_key,
            ephemeral=random.randbytes(32),
            preshared_key=self.preshared_key,
            prologue=prologue,
            authorize=authorize,
        )
