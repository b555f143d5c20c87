"""
Secret keys of certificates: made, written as PEM (PKCS #8), and read again with a passphrase.

An authority's key is encrypted under what scrypt derives from the passphrase (RFC 7914 section 7, in PBES2 of
RFC 8018); docs/decisions/0080 says why. OpenSSL and cryptography read that.
"""

import hashlib
import os
import textwrap
from base64 import b64encode
from enum import Enum, unique

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from rvpn.errors import LocalError
from rvpn.pki.certificates import PrivateKey

#: N, r and p of scrypt: 16 MiB, a quarter of a second. More memory than this OpenSSL refuses by default.
SCRYPT_COST = (1 << 14, 8, 5)
_BLOCK = 16
_PBES2 = bytes.fromhex("2a864886f70d01050d")
_SCRYPT = bytes.fromhex("2b06010401da47040b")
_AES_256_CBC = bytes.fromhex("60864801650304012a")
_INTEGER, _OCTETS, _IDENTIFIER, _SEQUENCE = 0x02, 0x04, 0x06, 0x30


@unique
class KeyKind(Enum):
    """The kinds of keys that are made; the value is what the command line takes."""

    ED25519 = "ed25519"
    P256 = "p256"


def generate(kind: KeyKind) -> PrivateKey:
    """Return a new key."""
    return Ed25519PrivateKey.generate() if kind is KeyKind.ED25519 else generate_ec(SECP256R1())


def plain_pem(key: PrivateKey) -> bytes:
    """Return a key as PEM that its file alone protects."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def encrypted_pem(key: PrivateKey, passphrase: bytes) -> bytes:
    """Return a key as PEM that only the passphrase opens."""
    salt, iv = os.urandom(_BLOCK), os.urandom(_BLOCK)
    padding = PKCS7(8 * _BLOCK).padder()
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    cipher = Cipher(AES256(_derived(passphrase, salt)), CBC(iv)).encryptor()
    sealed = cipher.update(padding.update(plain) + padding.finalize()) + cipher.finalize()
    derivation = _sequence(
        _der(_IDENTIFIER, _SCRYPT), _sequence(_der(_OCTETS, salt), *map(_number, SCRYPT_COST))
    )
    encryption = _sequence(_der(_IDENTIFIER, _AES_256_CBC), _der(_OCTETS, iv))
    algorithm = _sequence(_der(_IDENTIFIER, _PBES2), _sequence(derivation, encryption))
    body = textwrap.fill(b64encode(_sequence(algorithm, _der(_OCTETS, sealed))).decode(), 64)
    return f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{body}\n-----END ENCRYPTED PRIVATE KEY-----\n".encode()


def load(pem: bytes, passphrase: bytes, path: str) -> PrivateKey:
    """Return the key in an encrypted PEM. Raises `LocalError`, naming `path`, if that is not to be had."""
    try:
        key = load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise LocalError(f"{path}: this is not the passphrase of this key, or the file is damaged") from None
    if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
        raise LocalError(f"{path}: found another kind of key, expected Ed25519 or P-256")
    return key


def _derived(passphrase: bytes, salt: bytes) -> bytes:
    n, r, p = SCRYPT_COST
    return hashlib.scrypt(passphrase, salt=salt, n=n, r=r, p=p, dklen=32)


# --- DER (X.690), as far as it takes ------------------------------------------------------------


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _sequence(*parts: bytes) -> bytes:
    return _der(_SEQUENCE, b"".join(parts))


def _number(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1))
