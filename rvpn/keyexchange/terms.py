"""
The terms of a session: what a node offers in a key exchange, what it answers, which answer it takes
(DESIGN 4).

    initiator: `offer` -> Parameters -> the acceptor: `in_common`, is it refused? -> `answer` -> Parameters
        -> the initiator again: `complaint`

How the bytes are laid out is in `rvpn.keyexchange.parameters`. Of inner addresses each role has its own view.
"""

from collections.abc import Iterable

from rvpn.constants import MIN_KEY_LIFETIME, TransformID
from rvpn.interfaces import IPAddress, Parameters
from rvpn.policy.model import Policy


class Terms:
    """
    What a node's policy and host let it agree to.

    `fastest_first` are the transforms of a policy that leaves them to us, `partial_checksums` tells whether
    this host completes those of TCP and UDP, `trains` whether it takes super-packets of TCP.
    """

    policy: Policy

    def __init__(self) -> None:
        self.fastest_first: tuple[TransformID, ...] = tuple(TransformID)
        self.partial_checksums = self.trains = False

    @property
    def transforms(self) -> tuple[TransformID, ...]:
        """What is offered, the preferred first, and accepted."""
        return self.fastest_first if self.policy.transforms is None else self.policy.transforms

    def offer(self, spi: int, inner_addresses: Iterable[IPAddress]) -> Parameters:
        """Return what an initiator says, for a session with these addresses."""
        return Parameters(
            spi=spi,
            transforms=self.transforms,
            inner_addresses=tuple(inner_addresses),
            lifetime=self.policy.key_lifetime,
            literal_heartbeats=self.policy.literal_heartbeats,
            partial_checksums=self.partial_checksums,
            trains=self.trains,
        )

    def in_common(self, offer: Parameters) -> tuple[TransformID, ...]:
        """Return the initiator's first choice among our transforms, or nothing."""
        return tuple(transform for transform in offer.transforms if transform in self.transforms)[:1]

    def answer(self, spi: int, offer: Parameters, refusal: str) -> Parameters:
        """Return what an acceptor says to an offer: yes, or why not."""
        return Parameters(
            spi=spi,
            transforms=self.in_common(offer),
            inner_addresses=() if refusal else offer.inner_addresses,
            lifetime=min(offer.lifetime, self.policy.key_lifetime),
            refusal=refusal,
            literal_heartbeats=self.policy.literal_heartbeats,
            partial_checksums=self.partial_checksums,
            trains=self.trains,
        )


def complaint(offer: Parameters, answer: Parameters) -> str:
    """Say why an initiator does not take the answer to what it offered; empty if it does."""
    if len(answer.transforms) != 1 or answer.transforms[0] not in offer.transforms:
        return "it chose a transform that was not offered"
    if set(answer.inner_addresses) != set(offer.inner_addresses):
        return "it grants other inner addresses than were offered"
    if not MIN_KEY_LIFETIME <= answer.lifetime <= offer.lifetime:
        return "it grants another key lifetime than was offered"
    if answer.literal_heartbeats != offer.literal_heartbeats:
        return "its HeartbeatAuthentication differs"
    return ""
