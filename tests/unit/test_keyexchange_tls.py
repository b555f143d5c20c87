"""`rvpn.keyexchange.tls`: two contexts joined in memory, without and with the transport around them."""

import os
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path as File
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from rvpn.agenda import Agenda
from rvpn.constants import Mechanism, Role
from rvpn.errors import ContextFailed, DropReason, LocalError, RemoteError
from rvpn.interfaces import Initiation, Parameters, PeerIdentity
from rvpn.keyexchange.acceptor import Acceptor, AcceptRequest
from rvpn.keyexchange.authenticator import CertificateAuthenticator
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.keys import derive
from rvpn.keyexchange.tls import TLSAcceptor, TLSInitiator
from tests.certificates import DAY, TODAY, Authority, Issued, authenticator
from tests.unit.keyexchange_ends import ANSWER, EXCHANGE_ID, OFFER, Network, stepped

INNER = ip_address("10.99.0.1")
RANGE = ip_network("10.99.0.0/24")
GATEWAY = PeerIdentity(Mechanism.TLS, "198.51.100.21")
ALICE = PeerIdentity(Mechanism.TLS, "alice (Test CA)")
CA = Authority()
CLIENT_SIDE = authenticator(Role.CLIENT, CA.client(), CA.accepted())
GATEWAY_SIDE = authenticator(Role.GATEWAY, CA.gateway(), CA.accepted(RANGE))


def initiator(
    side: CertificateAuthenticator = CLIENT_SIDE, peer: PeerIdentity = GATEWAY, **changes: Any
) -> TLSInitiator:
    """Return the end that begins."""
    arguments: dict[str, Any] = {"prologue": b"prologue", "parameters": OFFER, "time_of_day": TODAY}
    return side.initiator(peer, **(arguments | changes))


def acceptor(
    side: CertificateAuthenticator = GATEWAY_SIDE, peer: PeerIdentity | None = None, **changes: Any
) -> TLSAcceptor:
    """Return the end that answers; it accepts everybody with a good certificate."""
    arguments: dict[str, Any] = {
        "prologue": b"prologue",
        "authorize": lambda _: ANSWER,
        "time_of_day": TODAY,
    }
    return side.acceptor(peer, **(arguments | changes))


def shake(one: TLSInitiator, other: TLSAcceptor) -> list[int]:
    """Carry tokens to and fro until there are no more; return their lengths."""
    token, lengths, ends = one.step(None), list[int](), [other, one]
    while token is not None:
        lengths.append(len(token))
        token = ends[0].step(token)
        ends.reverse()
    return lengths


class ContextTests(SynchronousTestCase):
    """Both ends agree, or neither is established."""

    def test_agreement(self) -> None:
        """Two round trips, and both know who the other is, what it said, how, and the same keys."""
        said: list[Initiation] = []

        def authorize(initiation: Initiation) -> Parameters:
            said.append(initiation)
            return ANSWER

        one, other = initiator(), acceptor(authorize=authorize)
        lengths = shake(one, other)
        self.assertEqual(len(lengths), 4)
        self.assertLess(sum(lengths), 6000)
        self.assertEqual((one.established, other.established), (True, True))
        self.assertEqual(said, [Initiation(ALICE, None, OFFER, (INNER,))])
        self.assertEqual((one.peer, other.peer), (GATEWAY, ALICE))
        self.assertEqual((one.own_parameters, one.peer_parameters), (OFFER, ANSWER))
        self.assertEqual((other.own_parameters, other.peer_parameters), (ANSWER, OFFER))
        self.assertEqual(derive(one), derive(other))
        self.assertNotEqual(*derive(one))
        for context, name in (one, "gw1"), (other, "alice"):
            told = context.authentication
            self.assertEqual((told.group, told.cipher), ("X25519MLKEM768", "TLS_AES_256_GCM_SHA384"))
            self.assertEqual((told.subject, told.issuer), (name, "Test CA"))
            self.assertEqual(told.expires_at, TODAY + DAY)

    def test_every_exchange_is_whole(self) -> None:
        """No exchange resumes another, and there is nothing to resume it with: no ticket is of any use."""
        lengths = [shake(initiator(), acceptor()) for _ in range(2)]
        self.assertEqual(*[[length // 16 for length in each] for each in lengths])
        context = initiator()
        shake(context, acceptor())
        session = context._connection.get_session()
        self.assertIsNotNone(session)
        again, other = initiator(), acceptor()
        again._connection.set_session(session)  # type: ignore[arg-type]
        whole = [length // 16 for length in shake(again, other)]
        self.assertEqual(whole[1:3], [length // 16 for length in lengths[0]][1:3], "certificates both ways")

    def test_early(self) -> None:
        """The initiator is not established before the acceptor has accepted it."""
        one, other = initiator(), acceptor()
        token = one.step(stepped(other, stepped(one, None)))
        self.assertFalse(one.established)
        self.assertRaises(LocalError, one.export, b"label", 32)
        self.assertRaises(LocalError, lambda: one.peer_parameters)
        assert token is not None
        self.assertIsNone(one.step(stepped(other, token)))
        self.assertTrue(one.established)

    def test_bound(self) -> None:
        """Keys differ where the ends disagree about version, mechanism, roles or cookie."""
        one, other = initiator(), acceptor(prologue=b"other prologue")
        shake(one, other)
        self.assertNotEqual(derive(one), derive(other))

    def test_bound_to_parameters(self) -> None:
        """Keys differ with what was said."""
        one, other = initiator(), acceptor()
        shake(one, other)
        before = other.export(b"label", 32)
        other._heard += b"\0"
        self.assertNotEqual(other.export(b"label", 32), before)

    def test_a_gateway_begins(self) -> None:
        """The gateway is the client of TLS then, and the roles of the VPN are checked all the same."""
        one = initiator(GATEWAY_SIDE, ALICE)
        other = acceptor(CLIENT_SIDE, GATEWAY)
        shake(one, other)
        self.assertEqual((one.peer, other.peer), (ALICE, GATEWAY))
        self.assertEqual(derive(one), derive(other))

    def test_another_client_is_called(self) -> None:
        """A gateway that calls a client refuses another one at its address, before it says anything."""
        bob = PeerIdentity(Mechanism.TLS, "bob (Test CA)")
        one, other = initiator(GATEWAY_SIDE, bob), acceptor(CLIENT_SIDE, GATEWAY)
        answer = stepped(other, stepped(one, None))
        error = self.assertRaises(ContextFailed, one.step, answer)
        self.assertEqual(error.detail, "certificate 'alice': found alice (Test CA), expected bob (Test CA)")

    def test_names(self) -> None:
        """A gateway may be known by another of its addresses, or by a DNS name."""
        own = CA.gateway("gw1", "198.51.100.21", "2001:db8::21", "gw1.example.org")
        side = authenticator(Role.GATEWAY, own, CA.accepted(RANGE))
        for name in "2001:db8::21", "gw1.example.org":
            peer = PeerIdentity(Mechanism.TLS, name)
            one, other = initiator(peer=peer), acceptor(side)
            shake(one, other)
            self.assertEqual(one.peer, peer)

    def test_intermediate(self) -> None:
        """The policy may name an authority that another one certified, and need not know that one."""
        root = Authority("Root", path_length=1)
        between = Authority("Between", root)
        gateway = authenticator(Role.GATEWAY, between.gateway(), between.accepted(RANGE))
        client = authenticator(Role.CLIENT, between.client(), between.accepted())
        shake(one := initiator(client), acceptor(gateway))
        self.assertEqual(one.authentication.issuer, "Between")

    def test_keys(self) -> None:
        """P-256 and P-384 are as good as Ed25519."""
        for curve in ec.SECP256R1(), ec.SECP384R1():
            key = ec.generate_private_key(curve)
            authority = Authority(key=key)
            client = authenticator(Role.CLIENT, authority.client(key=key), authority.accepted())
            gateway = authenticator(Role.GATEWAY, authority.gateway(key=key), authority.accepted(RANGE))
            shake(one := initiator(client), acceptor(gateway))
            self.assertTrue(one.established)

    def test_time(self) -> None:
        """Certificates are judged at the time that is given, not by the clock of this machine."""
        later = TODAY + 2 * DAY
        one, other = initiator(), acceptor()
        answer = stepped(other, stepped(one, None))
        self.assertTrue(stepped(one, answer))
        one, other = initiator(time_of_day=later), acceptor(time_of_day=later)
        answer = stepped(other, stepped(one, None))
        error = self.assertRaises(ContextFailed, one.step, answer)
        self.assertIn("that it expired on 2023-11-15 22:13:20 UTC, expected one", error.detail)

    def test_group(self) -> None:
        """X25519 alone is accepted, and nothing weaker."""

        def only(curve: ec.EllipticCurve) -> CertificateAuthenticator:
            side = authenticator(Role.CLIENT, CA.client(), CA.accepted())
            side._context.set_tmp_ecdh(curve)
            return side

        one, other = initiator(only(ec.SECP256R1())), acceptor()
        token = stepped(one, stepped(other, stepped(one, None))) if self._allow(one) else b""
        error = self.assertRaises(ContextFailed, other.step, token)
        self.assertEqual(
            error.detail,
            "certificate 'alice': found key agreement secp256r1, expected X25519MLKEM768 or X25519",
        )

    def _allow(self, one: TLSInitiator) -> bool:
        """Let a peer accept any group, as a hostile one would."""
        one._see_peer = lambda: None  # type: ignore[method-assign]
        return True

    def test_refusal_by_policy(self) -> None:
        """What `authorize` raises ends the exchange; nothing goes out."""

        def authorize(_: Initiation) -> Parameters:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "not you")

        one, other = initiator(), acceptor(authorize=authorize)
        token = stepped(one, stepped(other, stepped(one, None)))
        error = self.assertRaises(ContextFailed, other.step, token)
        self.assertEqual(error.detail, "not you")
        self.assertRaises(ContextFailed, other.step, token)
        self.assertFalse(other.established)

    def test_wrong_tokens(self) -> None:
        """A token that is none, or comes again, ends a context; all that comes after it does so too."""
        for wrong in b"", b"\0", bytes(1000), b"\x16\3\1\0\4abcd":
            other = acceptor()
            self.assertRaises(ContextFailed, other.step, wrong)
            self.assertRaises(ContextFailed, other.step, stepped(initiator(), None))
        one, other = initiator(), acceptor()
        shake(one, other)
        self.assertRaises(ContextFailed, one.step, b"again")
        self.assertRaises(ContextFailed, other.step, b"again")

    def test_no_parameters(self) -> None:
        """A handshake without parameters establishes nothing."""
        one, other = initiator(), acceptor()
        one._say = lambda parameters: None  # type: ignore[method-assign]
        token = stepped(one, stepped(other, stepped(one, None)))
        error = self.assertRaises(ContextFailed, other.step, token)
        self.assertEqual((error.reason, error.detail), (DropReason.MALFORMED_KEY_EXCHANGE, "no parameters"))

    def test_wrong_parameters(self) -> None:
        """Parameters that are none establish nothing."""

        def rubbish(parameters: Parameters) -> None:
            one._connection.sendall(b"rubbish")

        one, other = initiator(), acceptor()
        one._say = rubbish  # type: ignore[method-assign]
        token = stepped(one, stepped(other, stepped(one, None)))
        error = self.assertRaises(ContextFailed, other.step, token)
        self.assertEqual(error.reason, DropReason.MALFORMED_KEY_EXCHANGE)

    def test_no_certificate(self) -> None:
        """A client without a certificate gets nothing."""
        context = SSL.Context(SSL.TLS_METHOD)
        connection = SSL.Connection(context, None)
        connection.set_connect_state()
        self.assertRaises(SSL.WantReadError, connection.do_handshake)
        other = acceptor()
        connection.bio_write(stepped(other, connection.bio_read(1 << 16)))
        connection.do_handshake()
        error = self.assertRaises(ContextFailed, other.step, connection.bio_read(1 << 16))
        self.assertEqual(error.detail, "TLS: peer did not return a certificate")

    def test_older_tls(self) -> None:
        """TLS 1.2 is refused."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        connection = SSL.Connection(context, None)
        connection.set_connect_state()
        self.assertRaises(SSL.WantReadError, connection.do_handshake)
        error = self.assertRaises(ContextFailed, acceptor().step, connection.bio_read(1 << 16))
        self.assertIn("protocol", error.detail)

    def test_key_of_another(self) -> None:
        """A key that is not the certificate's is a fault of this node."""
        own = Issued(CA.client().certificate, CA.client().key)
        error = self.assertRaises(LocalError, authenticator, Role.CLIENT, own, CA.accepted())
        self.assertEqual(str(error), "found a key that is not the certificate's, expected its own")

    def test_secrets(self) -> None:
        """No representation shows a key."""
        self.assertNotIn("private_key", repr(GATEWAY_SIDE.files))


def exchange(side: CertificateAuthenticator = CLIENT_SIDE, seed: int = 1, lifetime: float = 5.0) -> Network:
    """Return both ends of an exchange with the transport around them; the cookie is the prologue."""

    def begin(cookie: bytes) -> TLSInitiator:
        return initiator(side, prologue=cookie)

    def accept(request: AcceptRequest) -> TLSAcceptor:
        return acceptor(prologue=request.cookie)

    agenda, random = Agenda(), Random(seed)
    return Network(
        InitiatorExchange(EXCHANGE_ID, Mechanism.TLS, begin, 0.0, lifetime),
        Acceptor({Mechanism.TLS: accept}, agenda, random, 0.0),
        agenda,
        random,
    )


class GroupTests(SynchronousTestCase):
    """Key agreement with an OpenSSL that is older, or told so."""

    def test_x25519(self) -> None:
        """Without ML-KEM the ends agree on X25519, and know it."""
        configuration = File(self.mktemp()).absolute()
        configuration.write_text(
            "openssl_conf = all\n[all]\nssl_conf = tls\n"
            "[tls]\nsystem_default = groups\n[groups]\nGroups = X25519\n"
        )
        program = (
            "from tests.unit.test_keyexchange_tls import *\n"
            "one = initiator(); shake(one, acceptor()); print(one.authentication.group)"
        )
        environment = os.environ | {"OPENSSL_CONF": str(configuration), "PYTHONPATH": ":".join(sys.path)}
        told = subprocess.check_output([sys.executable, "-c", program], text=True, env=environment)
        self.assertEqual(told, "X25519\n")


class TransportTests(SynchronousTestCase):
    """Tokens of `tls` in the datagrams of the key exchange."""

    def test_round_trips(self) -> None:
        """Without loss it takes the cookie and two round trips, and 13 datagrams."""
        network = exchange()
        network.run(5.0)
        self.assertIsNotNone(network.exchange.context)
        self.assertAlmostEqual(network.now, 0.06, places=3)
        self.assertLessEqual(len(network.to_acceptor) + len(network.to_initiator), 14)
        self.assertEqual(network.refused, [])

    def test_loss(self) -> None:
        """200 of 200 exchanges complete within 5 s while a fifth of the datagrams is lost."""
        for seed in range(200):
            network = exchange(seed=seed)
            network.loss, network.delay, network.jitter = 0.2, 0.01, 0.005
            network.run(5.0)
            context = network.exchange.context
            assert context is not None, seed
            (established,) = network.established
            self.assertEqual(derive(context), derive(established.context))

    def test_refused(self) -> None:
        """A refused client learns a reason code, the acceptor keeps nothing, and nothing is established."""
        network = exchange(authenticator(Role.CLIENT, Authority().client(), CA.accepted()))
        network.run(9.0)
        self.assertEqual(network.established, [])
        self.assertEqual(len(network.acceptor), 0)
        assert network.exchange.failed is not None
        self.assertIn("authentication failed", network.exchange.failed)
        self.assertEqual(
            [len(d) for d in network.to_initiator if d[5] == 4], [33], "one rejection, with a reason code"
        )

    def test_refuses(self) -> None:
        """An initiator that refuses a gateway says in its log why, and gives up at once."""
        network = exchange(authenticator(Role.CLIENT, CA.client(), Authority("Other CA").accepted()))
        network.run(9.0)
        assert network.exchange.failed is not None
        self.assertIn(
            "certificate 'gw1': found that it is issued by 'Test CA', expected one by an authority",
            network.exchange.failed,
        )
        self.assertAlmostEqual(network.now, 0.04, places=3)
