"""
The lost-key notice: a gateway that started again proves that it has no keys for an SPI any more (X3, after
RFC 6290).

Starts are numbered and survive in the state directory together with a secret. A session made during start N
carries the token of (N, its SPI), told inside the key exchange. Start N + 1 discloses tokens of start N
alone, so whoever shows one proves that start N is over. A notice is no longer than what drew it:

    offset  bytes
    0       4      SPI 0xFFFFFFFF
    4       4      zero: no session control packet has this kind
    8       4      the SPI nobody knows any more
    12      16     its token
"""

from hashlib import blake2b
from hmac import compare_digest
from struct import Struct

from rvpn.constants import CONTROL_SPI

_NOTICE = Struct("!IxxxxI16s")
#: Bytes of a notice.
NOTICE_SIZE = _NOTICE.size


class LostKeys:
    """The tokens of a gateway: `secret` has 32 bytes, `start` is the number of this start."""

    def __init__(self, secret: bytes, start: int) -> None:
        self._secret = secret
        self.start = start

    def token(self, spi: int) -> bytes:
        """Return the token of a session made now."""
        return self._token(self.start, spi)

    def notice(self, spi: int) -> bytes:
        """Return what proves that keys of the start before this one are gone."""
        return _NOTICE.pack(CONTROL_SPI, spi, self._token(self.start - 1, spi))

    def _token(self, start: int, spi: int) -> bytes:
        message = start.to_bytes(8) + spi.to_bytes(4)
        return blake2b(message, digest_size=16, key=self._secret, person=b"rvpn lost keys").digest()


def proves(notice: bytes | memoryview, token: bytes) -> bool:
    """
    Tell whether a notice (NOTICE_SIZE bytes) shows `token`, which stands for one SPI; an empty one never is.
    """
    return compare_digest(_NOTICE.unpack(notice)[2], token)
