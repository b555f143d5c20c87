"""The inbound end of an SA, for tests that have whole datagrams."""

from rvpn.esp.codec import HEADER, Slots
from rvpn.esp.sa import InboundSA


def opened(sa: InboundSA, datagram: bytes | memoryview) -> tuple[bytes, int]:
    """Open a datagram of at least SHORTEST bytes; return the inner packet and next header."""
    _, (additional,), (sealed,) = Slots([], [], []).add(memoryview(datagram), 0, len(datagram))
    sequence = int.from_bytes(datagram[4:8])
    plaintext, length = sa.open(sequence, bytes(datagram[8 : HEADER.size]), additional, sealed)
    return plaintext[:length], plaintext[-1]
