"""
`rvpn.keyexchange.noise`: published vectors, another implementation as the peer, and what forgers can do.

The vectors are cacophony's, in `noise-ik-cacophony.json` under `RVPN_VECTORS` (default: `shared/vectors`
beside the project).
"""

import copy
import json
import os
from base64 import b64encode
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from rvpn.constants import Mechanism, Role
from rvpn.errors import CookieRequired, DropReason, LocalError, RemoteError
from rvpn.interfaces import Initiation, Parameters, PeerIdentity
from rvpn.keyexchange.keys import binding, derive
from rvpn.keyexchange.noise import (
    NO_PSK,
    PROTOCOL,
    Handshake,
    public_key,
)
from rvpn.keyexchange.parameters import encode
from tests.unit.keyexchange_ends import (
    ANSWER,
    CLIENT,
    CLIENT_EPHEMERAL,
    GATEWAY,
    GATEWAY_EPHEMERAL,
    NOW,
    OFFER,
    PSK,
    identity,
    noise_acceptor,
    noise_initiator,
    stepped,
)

VECTORS = Path(os.environ.get("RVPN_VECTORS", Path(__file__).parents[3] / "shared" / "vectors"))

#: RFC 7748 section 6.1 asks to refuse these: X25519 gives zero with any scalar.
LOW_ORDER = (
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
)


class VectorTests(SynchronousTestCase):
    """IK and IKpsk2, with BLAKE2b and SHA256, make exactly the published messages, hash and keys."""

    def test_cacophony(self) -> None:
        """Both ends write the ciphertexts of the vectors and read the payloads from them."""
        file = VECTORS / "noise-ik-cacophony.json"
        if not file.exists():
            raise SkipTest(f"no test vectors: {file} is missing")
        vectors = json.loads(file.read_text())["vectors"]
        self.assertEqual(len(vectors), 4)
        for vector in vectors:
            self.check(vector)

    def check(self, vector: dict[str, Any]) -> None:
        """Run one vector through both ends."""
        name = vector["protocol_name"].encode()
        psk = bytes.fromhex(vector["init_psks"][0]) if "init_psks" in vector else None
        ours, theirs = (
            Handshake(
                name,
                prologue=bytes.fromhex(vector[f"{end}_prologue"]),
                static=bytes.fromhex(vector[f"{end}_static"]),
                ephemeral=bytes.fromhex(vector[f"{end}_ephemeral"]),
                psk=psk,
                remote_static=bytes.fromhex(vector.get(f"{end}_remote_static", "")),
            )
            for end in ("init", "resp")
        )
        payloads = [bytes.fromhex(message["payload"]) for message in vector["messages"]]
        ciphertexts = [bytes.fromhex(message["ciphertext"]) for message in vector["messages"]]
        self.assertEqual(ours.write_first(payloads[0]), ciphertexts[0])
        self.assertEqual(theirs.read_first(ciphertexts[0]), payloads[0])
        self.assertEqual(theirs.write_second(payloads[1]), ciphertexts[1])
        self.assertEqual(ours.read_second(ciphertexts[1]), payloads[1])
        self.assertEqual(ours.symmetric.handshake_hash.hex(), vector["handshake_hash"])
        self.assertEqual(ours.symmetric.split(), theirs.symmetric.split())
        self.check_transport(ours.symmetric.split(), payloads[2:], ciphertexts[2:])

    def check_transport(self, keys: tuple[bytes, bytes], payloads: list[bytes], sealed: list[bytes]) -> None:
        """Seal the messages after the handshake, by turns with the initiator's and the acceptor's key."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        for number, (payload, ciphertext) in enumerate(zip(payloads, sealed, strict=True)):
            nonce = bytes(4) + (number // 2).to_bytes(8, "little")
            self.assertEqual(ChaCha20Poly1305(keys[number % 2]).encrypt(nonce, payload, None), ciphertext)


class InteroperationTests(SynchronousTestCase):
    """The package noiseprotocol completes the exchange with us in either role."""

    def peer(self) -> NoiseConnection:
        """Return a noiseprotocol connection with our prologue and PSK."""
        connection = NoiseConnection.from_name(PROTOCOL)
        connection.set_psks(PSK)
        connection.set_prologue(b"prologue")
        return connection

    def test_as_acceptor(self) -> None:
        """It reads our first message, and we read its second."""
        peer = self.peer()
        peer.set_as_responder()
        peer.set_keypair_from_private_bytes(Keypair.STATIC, GATEWAY)
        peer.start_handshake()
        ours = Handshake(
            PROTOCOL,
            prologue=b"prologue",
            static=CLIENT,
            ephemeral=CLIENT_EPHEMERAL,
            psk=PSK,
            remote_static=public_key(GATEWAY),
        )
        self.assertEqual(bytes(peer.read_message(ours.write_first(b"hello"))), b"hello")
        self.assertEqual(ours.read_second(bytes(peer.write_message(b"welcome"))), b"welcome")
        self.assertEqual(ours.symmetric.handshake_hash, peer.get_handshake_hash())

    def test_as_initiator(self) -> None:
        """We read its first message, and it reads our second."""
        peer = self.peer()
        peer.set_as_initiator()
        peer.set_keypair_from_private_bytes(Keypair.STATIC, CLIENT)
        peer.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, public_key(GATEWAY))
        peer.start_handshake()
        ours = Handshake(PROTOCOL, prologue=b"prologue", static=GATEWAY, ephemeral=GATEWAY_EPHEMERAL, psk=PSK)
        self.assertEqual(ours.read_first(bytes(peer.write_message(b"hello"))), b"hello")
        self.assertEqual(ours.remote_static, public_key(CLIENT))
        self.assertEqual(bytes(peer.read_message(ours.write_second(b"welcome"))), b"welcome")
        self.assertEqual(ours.symmetric.handshake_hash, peer.get_handshake_hash())


class ContextTests(SynchronousTestCase):
    """Two contexts in one round trip: identities, parameters and keys on both sides."""

    def test_complete(self) -> None:
        """Each end knows the other's identity and parameters, and both export the same keys."""
        initiations: list[Initiation] = []

        def authorize(initiation: Initiation) -> Parameters:
            initiations.append(initiation)
            return ANSWER

        client, gateway = noise_initiator(), noise_acceptor(authorize=authorize)
        self.assertIsNone(client.step(stepped(gateway, stepped(client, None))))
        self.assertEqual(initiations, [Initiation(identity(CLIENT), NOW, OFFER)])
        self.assertTrue(client.established and gateway.established)
        self.assertEqual((client.peer, gateway.peer), (identity(GATEWAY), identity(CLIENT)))
        self.assertEqual((client.own_parameters, client.peer_parameters), (OFFER, ANSWER))
        self.assertEqual((gateway.own_parameters, gateway.peer_parameters), (ANSWER, OFFER))
        self.assertEqual(derive(client), derive(gateway))

    def test_keys(self) -> None:
        """No two keys are the same, each has its length, and none appears in a text."""
        client, gateway = noise_initiator(), noise_acceptor()
        client.step(stepped(gateway, stepped(client, None)))
        directions = derive(client)
        keys = [key for d in directions for key in (d.esp_key, d.control_key, d.salt)]
        self.assertEqual([len(key) for key in keys], [32, 32, 4] * 2)
        self.assertEqual(len(set(keys)), 6)
        self.assertEqual(repr(directions[0]), "DirectionKeys()")
        self.assertEqual(client.export(b"label", 200)[:64], client.export(b"label", 64))
        self.assertNotEqual(client.export(b"label", 64), client.export(b"lable", 64))

    def test_fresh_keys(self) -> None:
        """Another ephemeral key at either end gives other keys."""
        exported = set()
        for ours, theirs in ((3, 4), (5, 4), (3, 5)):
            client, gateway = (
                noise_initiator(ephemeral=bytes([ours]) * 32),
                noise_acceptor(ephemeral=bytes([theirs]) * 32),
            )
            client.step(stepped(gateway, stepped(client, None)))
            exported.add(client.export(b"label", 32))
        self.assertEqual(len(exported), 3)

    def test_not_established(self) -> None:
        """Before that neither end has keys or parameters to give away."""
        for context in (noise_initiator(), noise_acceptor()):
            self.assertRaises(LocalError, context.export, b"label", 32)
            for name in ("own_parameters", "peer_parameters"):
                self.assertRaises(LocalError, getattr, context, name)

    def test_no_longer_than_the_request(self) -> None:
        """The first message is at least as long as the longest answer to it (DESIGN 4)."""
        refusal = Parameters(0x2000, OFFER.transforms, lifetime=7200.0, refusal="no" * 100)
        client = noise_initiator()
        first = stepped(client, None)
        self.assertLessEqual(len(stepped(noise_acceptor(authorize=lambda _: refusal), first)), len(first))

    def test_mismatches(self) -> None:
        """Another PSK, prologue or static key at the other end: nobody is authenticated."""
        first = stepped(noise_initiator(), None)
        for changes in ({"prologue": b"another"}, {"private_key": CLIENT}):
            error = self.assertRaises(RemoteError, noise_acceptor(**changes).step, first)
            self.assertEqual(error.reason, DropReason.AUTHENTICATION_FAILED)
        client = noise_initiator()
        answer = stepped(noise_acceptor(preshared_key=NO_PSK), stepped(client, None))
        self.assertRaises(RemoteError, client.step, answer)

    def test_refusal_to_authorize(self) -> None:
        """What `authorize` raises comes out, and no keys exist."""
        for error in (RemoteError(DropReason.AUTHENTICATION_FAILED), CookieRequired()):

            def authorize(initiation: Initiation, error: Exception = error) -> Parameters:
                raise error

            gateway = noise_acceptor(authorize=authorize)
            self.assertIs(
                self.assertRaises(type(error), gateway.step, stepped(noise_initiator(), None)), error
            )
            self.assertFalse(gateway.established)


class ForgeryTests(SynchronousTestCase):
    """Tokens from somebody else."""

    def test_forged_answer(self) -> None:
        """A forged second message is refused and spoils nothing: the true one after it completes."""
        client, gateway = noise_initiator(), noise_acceptor()
        answer = stepped(gateway, stepped(client, None))
        forged = stepped(
            noise_acceptor(private_key=CLIENT_EPHEMERAL, prologue=b"x"), self.first_for(CLIENT_EPHEMERAL)
        )
        for token in (forged, answer[:-1], answer + b"\0", b"", bytes(48), bytes(len(answer))):
            error = self.assertRaises(RemoteError, client.step, token)
            self.assertEqual(error.reason, DropReason.AUTHENTICATION_FAILED)
        self.assertIsNone(client.step(answer))
        self.assertEqual(derive(client), derive(gateway))

    def first_for(self, private: bytes) -> bytes:
        """Return a first message for another acceptor."""
        return stepped(noise_initiator(peer=identity(private), prologue=b"x"), None)

    def test_forged_first(self) -> None:
        """A forged first message is refused, and the true one after it is accepted by the same context."""
        gateway, first = noise_acceptor(), stepped(noise_initiator(), None)
        for position in (0, 40, 90, len(first) - 1):
            forged = first[:position] + bytes([first[position] ^ 1]) + first[position + 1 :]
            self.assertRaises(RemoteError, gateway.step, forged)
        self.assertTrue(gateway.step(first))

    def test_low_order_points(self) -> None:
        """Public keys that would make the shared secret a constant are refused at every place (RFC 7748)."""
        for point in LOW_ORDER:
            peer = PeerIdentity(Mechanism.NOISE, b64encode(point).decode())
            self.assertRaises(LocalError, noise_initiator(peer=peer).step, None)
            client = noise_initiator()
            first = stepped(client, None)
            for context, token in ((noise_acceptor(), first), (client, bytes(100))):
                error = self.assertRaises(RemoteError, context.step, point + token[32:])
                self.assertEqual(error.reason, DropReason.AUTHENTICATION_FAILED)

    def test_low_order_static(self) -> None:
        """An initiator whose own static key is of low order proves nothing: `ss` would be a constant."""
        forger = Handshake(
            PROTOCOL,
            prologue=b"prologue",
            static=CLIENT,
            ephemeral=CLIENT_EPHEMERAL,
            psk=PSK,
            remote_static=public_key(GATEWAY),
        )
        forger._public_static = bytes(32)
        self.assertRaises(RemoteError, noise_acceptor().step, forger.write_first(b""))

    @settings(derandomize=True, deadline=None, max_examples=150)
    @given(st.binary(max_size=200), st.booleans())
    def test_authenticated_garbage(self, payload: bytes, with_timestamp: bool) -> None:
        """A peer that we know may still send nonsense: nothing but RemoteError comes of it."""
        forger = Handshake(
            PROTOCOL,
            prologue=b"prologue",
            static=CLIENT,
            ephemeral=CLIENT_EPHEMERAL,
            psk=PSK,
            remote_static=public_key(GATEWAY),
        )
        try:
            noise_acceptor().step(forger.write_first(NOW * with_timestamp + payload))
        except RemoteError as error:
            self.assertEqual(error.reason, DropReason.MALFORMED_KEY_EXCHANGE)

    @settings(derandomize=True, deadline=None, max_examples=150)
    @given(st.binary(max_size=400))
    def test_garbage(self, token: bytes) -> None:
        """Random bytes as tokens raise nothing but RemoteError."""
        client = noise_initiator()
        client.step(None)
        for context in (client, noise_acceptor()):
            error = self.assertRaises(RemoteError, context.step, token)
            self.assertEqual(error.reason, DropReason.AUTHENTICATION_FAILED)

    def test_out_of_turn(self) -> None:
        """A context that is established takes no more tokens."""
        client, gateway = noise_initiator(), noise_acceptor()
        first = stepped(client, None)
        answer = stepped(gateway, first)
        client.step(answer)
        self.assertRaises(RemoteError, client.step, answer)
        self.assertRaises(RemoteError, gateway.step, first)
        self.assertRaises(RemoteError, gateway.step, None)

    def test_keys_do_not_change(self) -> None:
        """Not even the true peer, which knows the state, can make an established context begin again."""
        client, gateway = noise_initiator(), noise_acceptor()
        client.step(stepped(gateway, stepped(client, None)))
        first_again = copy.deepcopy(client._handshake).write_first(NOW + encode(OFFER))
        second_again = copy.deepcopy(gateway._handshake).write_second(encode(ANSWER))
        self.assertRaises(RemoteError, gateway.step, first_again)
        self.assertRaises(RemoteError, client.step, second_again)
        self.assertEqual(derive(client), derive(gateway))

    def test_peer_that_is_no_key(self) -> None:
        """A configured peer that is no public key is our own fault, and the text says so."""
        for name in ("", "not base64!", b64encode(bytes(31)).decode()):
            self.assertRaises(LocalError, noise_initiator, peer=PeerIdentity(Mechanism.NOISE, name))


class BindingTests(SynchronousTestCase):
    """`binding` differs wherever the ends could disagree."""

    def test_all_differ(self) -> None:
        """Mechanism, role of the initiator and cookie each change it."""
        combinations = {
            binding(mechanism, role, cookie)
            for mechanism in Mechanism
            for role in Role
            for cookie in (b"", bytes(16), b"c" * 16)
        }
        self.assertEqual(len(combinations), 12)
