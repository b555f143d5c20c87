"""
The AEAD transforms of ESP: AES-GCM with a 16-byte ICV (RFC 4106) and ChaCha20-Poly1305 (RFC 7634).

Both take a 32-byte key and a nonce of a secret 4-byte salt and the 8-byte IV of the packet, so that keys for
them are derived alike. The ciphers are those of `cryptography`, whose `*_into` methods write to the caller's
buffers.
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from rvpn.constants import TransformID

#: Bytes of key and of salt for each direction of an SA (RFC 4106 section 8.1, RFC 7634 section 2).
KEY_SIZE, SALT_SIZE = 32, 4

Cipher = AESGCM | ChaCha20Poly1305

_CIPHERS: dict[TransformID, Callable[[bytes], Cipher]] = {
    TransformID.AES_GCM_16_256: AESGCM,
    TransformID.CHACHA20_POLY1305: ChaCha20Poly1305,
}


def cipher(transform: TransformID, key: bytes) -> Cipher:
    """Return the cipher of `transform` under `key`; raises ValueError unless the key has KEY_SIZE bytes."""
    if len(key) != KEY_SIZE:
        # AESGCM alone would take a shorter key for AES-128.
        raise ValueError(f"{transform.name} takes a key of {KEY_SIZE} bytes, not {len(key)}")
    return _CIPHERS[transform](key)
