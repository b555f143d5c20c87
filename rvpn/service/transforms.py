"""Which ESP transform is the fastest on this machine: AES-GCM with AES in the processor, ChaCha20 without."""

from time import perf_counter

from rvpn.constants import LINK_MTU, TransformID
from rvpn.esp.codec import AAD_SIZE, ICV_SIZE
from rvpn.esp.transforms import KEY_SIZE, cipher

#: The shortest of so many rounds counts, each of so many packets: a millisecond in all.
ROUNDS, PACKETS = 8, 16


def fastest_first() -> tuple[TransformID, ...]:
    """Return all transforms, measured now: `Transforms = auto`."""
    return tuple(sorted(TransformID, key=seconds))


def seconds(transform: TransformID) -> float:
    """Return how long a round of sealing packets takes with this transform."""
    seal = cipher(transform, bytes(KEY_SIZE)).encrypt_into
    nonce, packet, additional = bytes(12), bytes(LINK_MTU), bytes(AAD_SIZE)
    out = bytearray(LINK_MTU + ICV_SIZE)
    shortest = float("inf")
    for _ in range(ROUNDS):
        begun = perf_counter()
        for _ in range(PACKETS):
            seal(nonce, packet, additional, out)
        shortest = min(shortest, perf_counter() - begun)
    return shortest
