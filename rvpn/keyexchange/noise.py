"""
The mechanism `noise`: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2b as a security context (Noise revision 34).

    <- s                                  the acceptor's public key, pinned in the initiator's policy
    -> e, es, s, ss  timestamp parameters
    <- e, ee, se, psk        parameters

`SymmetricState` is Noise section 5.2, `Handshake` the two messages of the pattern, with and without psk2.
`NoiseInitiator` and `NoiseAcceptor` add what rvpn puts into the payloads and export keys. One round trip; a
message that does not authenticate leaves every state as it was, so that a forged one costs nothing but its
own work.
"""

import copy
import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError

from rvpn.constants import Mechanism
from rvpn.errors import DropReason, LocalError, RemoteError
from rvpn.interfaces import Authentication, Initiation, Parameters, PeerIdentity
from rvpn.keyexchange import parameters as codec
from rvpn.keyexchange.context import Context, known
from rvpn.keyexchange.tai64n import LABEL_SIZE

PROTOCOL = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2b"
#: The pre-shared key where the policy sets none.
NO_PSK = bytes(32)

_KEY = 32
_TAG = 16


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key (32 bytes) of a private key (32 bytes, RFC 7748)."""
    return crypto_scalarmult_base(private)


@contextmanager
def _authenticating() -> Iterator[None]:
    """Turn PyNaCl's refusals into ours: forged ciphertexts, and public keys of low order."""
    try:
        yield
    except CryptoError:
        raise RemoteError(DropReason.AUTHENTICATION_FAILED) from None


# --- The protocol -------------------------------------------------------------------------------------


class SymmetricState:
    """
    Chaining key, transcript hash and cipher of a handshake (Noise sections 5.1 and 5.2).

    In both patterns here the first encryption follows a DH, so there is always a key when one is needed.
    """

    def __init__(self, protocol: bytes) -> None:
        """Take the hash function's name from that of the protocol."""
        self._hash = protocol.rpartition(b"_")[2].decode().lower()
        size = hashlib.new(self._hash).digest_size
        self.handshake_hash = protocol.ljust(size, b"\0") if len(protocol) <= size else self._digest(protocol)
        self._chaining_key = self.handshake_hash
        self._key = b""
        self._nonce = 0

    def _digest(self, data: bytes) -> bytes:
        return hashlib.new(self._hash, data).digest()

    def hmac(self, key: bytes, data: bytes) -> bytes:
        """Return HMAC (RFC 2104) with the protocol's hash."""
        return hmac.digest(key, data, self._hash)

    def _hkdf(self, material: bytes, outputs: int) -> list[bytes]:
        """Noise section 4.3."""
        secret = self.hmac(self._chaining_key, material)
        found = [b""]
        for number in range(1, outputs + 1):
            found.append(self.hmac(secret, found[-1] + bytes([number])))
        return found[1:]

    def mix_hash(self, data: bytes) -> None:
        """Add public data to the transcript."""
        self.handshake_hash = self._digest(self.handshake_hash + data)

    def mix_key(self, material: bytes) -> None:
        """Add a shared secret."""
        self._chaining_key, key = self._hkdf(material, 2)
        self._key, self._nonce = key[:_KEY], 0

    def mix_key_and_hash(self, material: bytes) -> None:
        """Add a pre-shared key (Noise section 9)."""
        self._chaining_key, transcript, key = self._hkdf(material, 3)
        self.mix_hash(transcript)
        self._key, self._nonce = key[:_KEY], 0

    def _next_nonce(self) -> bytes:
        """Noise section 12.3: four zero bytes and a little-endian counter."""
        nonce = self._nonce
        self._nonce += 1
        return bytes(4) + nonce.to_bytes(8, "little")

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Seal under the current key with the transcript as associated data."""
        sealed = crypto_aead_chacha20poly1305_ietf_encrypt(
            plaintext, self.handshake_hash, self._next_nonce(), self._key
        )
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        """Open what `encrypt_and_hash` sealed. Raises nacl's CryptoError on anything else."""
        plaintext = crypto_aead_chacha20poly1305_ietf_decrypt(
            ciphertext, self.handshake_hash, self._next_nonce(), self._key
        )
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """Return the two 32-byte keys of the finished handshake: the initiator's, the acceptor's."""
        initiator, acceptor = self._hkdf(b"", 2)
        return initiator[:_KEY], acceptor[:_KEY]


class Handshake:
    """
    One end of IK or IKpsk2; the initiator calls `write_first` and `read_second`, the acceptor the other
    two.

    `psk` None means IK. The `read_` methods raise RemoteError(AUTHENTICATION_FAILED) and change nothing
    then.
    """

    def __init__(
        self,
        protocol: bytes,
        *,
        prologue: bytes,
        static: bytes,
        ephemeral: bytes,
        psk: bytes | None,
        remote_static: bytes = b"",
    ) -> None:
        """Take private keys, and the acceptor's public key if this is the initiator."""
        self._static, self._public_static = static, public_key(static)
        self._ephemeral, self._public_ephemeral = ephemeral, public_key(ephemeral)
        self._psk = psk
        self._remote_ephemeral = b""
        self.remote_static = remote_static
        self.symmetric = SymmetricState(protocol)
        self.symmetric.mix_hash(prologue)
        self.symmetric.mix_hash(remote_static or self._public_static)

    def write_first(self, payload: bytes) -> bytes:
        """`e, es, s, ss`, and the payload."""
        state = self.symmetric
        self._mix_ephemeral(state, self._public_ephemeral)
        with _authenticating():
            state.mix_key(crypto_scalarmult(self._ephemeral, self.remote_static))
            static = state.encrypt_and_hash(self._public_static)
            state.mix_key(crypto_scalarmult(self._static, self.remote_static))
        return self._public_ephemeral + static + state.encrypt_and_hash(payload)

    def read_first(self, message: bytes) -> bytes:
        """Return the payload of the other end's `write_first`; `remote_static` is known then."""
        ephemeral, static, sealed = _cut(message, _KEY, _KEY + _TAG)
        state = copy.copy(self.symmetric)
        self._mix_ephemeral(state, ephemeral)
        with _authenticating():
            state.mix_key(crypto_scalarmult(self._static, ephemeral))
            remote_static = state.decrypt_and_hash(static)
            state.mix_key(crypto_scalarmult(self._static, remote_static))
            payload = state.decrypt_and_hash(sealed)
        self.symmetric, self.remote_static, self._remote_ephemeral = state, remote_static, ephemeral
        return payload

    def write_second(self, payload: bytes) -> bytes:
        """`e, ee, se` and, with a PSK, `psk`; and the payload."""
        state = self.symmetric
        self._mix_ephemeral(state, self._public_ephemeral)
        # read_first has seen that neither key is of low order.
        state.mix_key(crypto_scalarmult(self._ephemeral, self._remote_ephemeral))
        state.mix_key(crypto_scalarmult(self._ephemeral, self.remote_static))
        self._mix_psk(state)
        return self._public_ephemeral + state.encrypt_and_hash(payload)

    def read_second(self, message: bytes) -> bytes:
        """Return the payload of the other end's `write_second`."""
        ephemeral, sealed = _cut(message, _KEY)
        state = copy.copy(self.symmetric)
        self._mix_ephemeral(state, ephemeral)
        with _authenticating():
            state.mix_key(crypto_scalarmult(self._ephemeral, ephemeral))
            state.mix_key(crypto_scalarmult(self._static, ephemeral))
            self._mix_psk(state)
            payload = state.decrypt_and_hash(sealed)
        self.symmetric = state
        return payload

    def _mix_ephemeral(self, state: SymmetricState, public: bytes) -> None:
        state.mix_hash(public)
        if self._psk is not None:  # Noise section 9.2
            state.mix_key(public)

    def _mix_psk(self, state: SymmetricState) -> None:
        if self._psk is not None:
            state.mix_key_and_hash(self._psk)


def _cut(message: bytes, *sizes: int) -> list[bytes]:
    """Cut off parts of these sizes; what remains is the sealed payload."""
    parts, offset = [], 0
    for size in sizes:
        parts.append(message[offset : offset + size])
        offset += size
    if len(message) < offset + _TAG:
        raise RemoteError(DropReason.AUTHENTICATION_FAILED, "message too short")
    return [*parts, message[offset:]]


# --- Security contexts ----------------------------------------------------------------------------------


class _NoiseContext(Context):
    """What both ends are once established."""

    def __init__(self, handshake: Handshake) -> None:
        super().__init__()
        self._handshake = handshake
        self._secret: bytes | None = None

    @property
    def established(self) -> bool:
        """Whether the peer is authenticated."""
        return self._secret is not None

    @property
    def peer(self) -> PeerIdentity:
        """The peer's static public key in base64."""
        return PeerIdentity(Mechanism.NOISE, b64encode(self._handshake.remote_static).decode())

    @property
    def authentication(self) -> Authentication:
        """Always the same: the pattern has no choice."""
        return Authentication(Mechanism.NOISE, "x25519", "ChaCha20-Poly1305")

    def export(self, label: bytes, length: int) -> bytes:
        """Return secret bytes: RFC 5869's expansion of the extract over both keys of Noise's Split."""
        secret = known(self._secret)
        exported = block = b""
        number = 0
        while len(exported) < length:
            number += 1
            block = self._handshake.symmetric.hmac(secret, block + label + bytes([number]))
            exported += block
        return exported[:length]

    def _establish(self, own: Parameters, peer: Parameters) -> None:
        self._own_parameters, self._peer_parameters = own, peer
        symmetric = self._handshake.symmetric
        self._secret = symmetric.hmac(symmetric.handshake_hash, b"".join(symmetric.split()))


class NoiseInitiator(_NoiseContext):
    """The end that begins: it sends timestamp and parameters, and gets the acceptor's parameters."""

    def __init__(
        self,
        *,
        private_key: bytes,
        peer: PeerIdentity,
        ephemeral: bytes,
        prologue: bytes,
        timestamp: bytes,
        parameters: Parameters,
        preshared_key: bytes = NO_PSK,
    ) -> None:
        """
        `ephemeral` is 32 random bytes, used for this context alone; `timestamp` is a TAI64N label.

        Raises LocalError if `peer` is no public key.
        """
        super().__init__(
            Handshake(
                PROTOCOL,
                prologue=prologue,
                static=private_key,
                ephemeral=ephemeral,
                psk=preshared_key,
                remote_static=_public_key_of(peer),
            )
        )
        self._timestamp = timestamp
        self._offer = parameters

    def step(self, token: bytes | None) -> bytes | None:
        """
        Return the first message on the first call, take the second on the next.

        Raises RemoteError on any other, after which the true second message may still come; on the first
        call LocalError if the peer's public key is of low order.
        """
        if token is None:
            payload = self._timestamp + codec.encode(self._offer, codec.INITIATOR_LENGTH)
            try:
                return self._handshake.write_first(payload)
            except RemoteError:
                raise LocalError("the peer's public key cannot be anybody's") from None
        if self.established:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "established already")
        answer = self._handshake.read_second(token)
        self._establish(self._offer, codec.decode(answer))
        return None


def _public_key_of(peer: PeerIdentity) -> bytes:
    try:
        public = b64decode(peer.name, validate=True)
    except ValueError:
        public = b""
    if len(public) != _KEY:
        raise LocalError(f"{peer.name} is not a public key: 32 bytes in base64")
    return public


class NoiseAcceptor(_NoiseContext):
    """
    The end that answers. `authorize` decides with which parameters, if at all.

    It is called once the initiator is authenticated, before anything is answered. It may raise RemoteError
    to refuse, or CookieRequired if the timestamp does not show that the message is no recording; `step`
    lets both pass.
    """

    def __init__(
        self,
        *,
        private_key: bytes,
        ephemeral: bytes,
        prologue: bytes,
        authorize: Callable[[Initiation], Parameters],
        preshared_key: bytes = NO_PSK,
    ) -> None:
        """`ephemeral` is 32 random bytes, used for this context alone."""
        super().__init__(
            Handshake(PROTOCOL, prologue=prologue, static=private_key, ephemeral=ephemeral, psk=preshared_key)
        )
        self._authorize = authorize

    def step(self, token: bytes | None) -> bytes | None:
        """Take the first message and return the second. Raises RemoteError, and what `authorize` raises."""
        if token is None or self.established:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "not a first message")
        payload = self._handshake.read_first(token)
        if len(payload) < LABEL_SIZE:
            raise RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, "no timestamp")
        offer = codec.decode(payload[LABEL_SIZE:])
        answer = self._authorize(Initiation(self.peer, payload[:LABEL_SIZE], offer))
        token = self._handshake.write_second(codec.encode(answer))
        self._establish(answer, offer)
        return token
