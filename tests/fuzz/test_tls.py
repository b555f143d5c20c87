"""
The mechanism `tls` in the hands of strangers, and of clients with true certificates that mean ill.

Whatever comes, nothing raises but `RemoteError`, no keys come of it, memory stays within bounds, and others
are served.
"""

import contextlib
import os
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path as File
from random import Random

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import KEY_EXCHANGE_MARKER, Mechanism, Role
from rvpn.errors import ContextFailed, RemoteError
from rvpn.interfaces import Endpoint, Parameters, Path, Send
from rvpn.keyexchange import parameters as codec
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptor import HALF_OPEN_TIME, MAX_HEAVY
from rvpn.keyexchange.keys import binding
from rvpn.keyexchange.tls import TLSInitiator
from tests.certificates import CLIENT_USAGE, DAY, GATEWAY_USAGE, TODAY, Careless, Issued
from tests.fuzz.mutation import MAX_PAYLOAD, Exchange, Family, Live, Mutator
from tests.fuzz.scene import GROWTH, Memory, report
from tests.unit.certified import CertifiedNetwork
from tests.unit.keyexchange_ends import ANSWER, OFFER, stepped
from tests.unit.simulation import INNER, TARGET, udp_packet
from tests.unit.test_keyexchange_tls import CA, RANGE, acceptor, initiator

#: Exchanges with a mutant in the place of a token, of a certificate, of parameters.
EXCHANGES = 400
#: Datagrams to a gateway, and strangers that each begin an exchange there.
DATAGRAMS, STRANGERS = 2000, 2 * MAX_HEAVY
#: Bytes by which the process may grow while strangers have all the exchanges that a gateway keeps.
MOST_HELD = 80 << 20
HELLO = udp_packet(INNER, TARGET, b"hello")


def resident() -> int:
    """Return the bytes of this process: OpenSSL's memory is not Python's."""
    return int(File("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class ContextTests(SynchronousTestCase):
    """Two contexts, one of which gets a mutant."""

    def setUp(self) -> None:
        """Seed the mutator."""
        self.mutator = Mutator(Random(11))

    def attack(self, exchange: Callable[[], bool]) -> None:
        """Run exchanges; Python keeps nothing of them. Most of them fail."""
        established = 0
        with Memory() as memory:
            for number in range(EXCHANGES):
                if number == EXCHANGES // 4:
                    memory.begin()
                try:
                    established += exchange()
                except RemoteError as error:
                    self.assertTrue(error.detail.isprintable(), error)
            growth = memory.growth()
        report(self, f"{EXCHANGES} exchanges, {established} of them established", growth)
        self.assertLess(established, EXCHANGES / 2)
        self.assertLessEqual(growth, GROWTH)

    def test_tokens(self) -> None:
        """A changed token ends an exchange, or what it changed was of no account."""
        recorded = [stepped(initiator(), None)]

        def exchange() -> bool:
            one, other = initiator(), acceptor()
            ends, token, victim = [other, one], one.step(None), self.mutator.random.randrange(4)
            for number in range(4):
                assert token is not None
                recorded[:] = [*recorded[-8:], token]
                if number == victim:
                    token = self.mutator.change(token, recorded)
                token = ends[number % 2].step(token)
                if token is None:
                    break
            for end, said in (one, ANSWER), (other, OFFER):
                if end.established:
                    self.assertEqual(end.peer_parameters, said)
            return one.established and other.established

        self.attack(exchange)

    def test_failed_for_good(self) -> None:
        """A context that got a wrong token takes no true one afterwards."""
        for number in range(50):
            one, other = initiator(), acceptor()
            token = stepped(one, None)
            wrong = self.mutator.change(token, [token])[: len(token) - 1]
            try:
                other.step(wrong)
            except ContextFailed:
                self.assertRaises(ContextFailed, other.step, token)
                self.assertFalse(other.established, number)

    def test_parameters(self) -> None:
        """A client with a true certificate says anything where its parameters belong."""
        encoded = codec.encode(OFFER)

        def exchange() -> bool:
            one, other = initiator(), acceptor()

            def say(parameters: Parameters) -> None:
                one._connection.sendall(self.mutator.parameters(encoded)[:MAX_PAYLOAD] or b"\0")

            one._say = say  # type: ignore[method-assign]
            other.step(stepped(one, stepped(other, stepped(one, None))))
            return other.established and other.peer_parameters == OFFER

        self.attack(exchange)

    def test_certificates(self) -> None:
        """An authority issues certificates with anything in their extensions; or nobody issued them."""
        good = CA.client()
        values = {e.oid: e.value.public_bytes() for e in good.certificate.extensions}
        encoded = good.certificate.public_bytes(Encoding.DER)

        def certificate() -> Issued:
            if self.mutator.random.random() < 0.3:
                mutant = self.mutator.change(encoded, [encoded])
                return Issued(x509.load_der_x509_certificate(mutant), good.key)
            oid = self.mutator.random.choice(list(values))
            value = self.mutator.change(values[oid], [values[oid]])
            return CA.client(key=good.key, instead=x509.UnrecognizedExtension(oid, value))

        def exchange() -> bool:
            try:
                end = Careless(Role.CLIENT, certificate())
            except (ValueError, SSL.Error, TypeError):
                return False  # nothing that could be sent
            one, other = initiator(end), acceptor()
            other.step(stepped(one, stepped(other, stepped(one, None))))
            return other.established

        self.attack(exchange)


class OracleTests(SynchronousTestCase):
    """Certificates that are well formed, and right or wrong in any combination."""

    def test_accepted(self) -> None:
        """Accepted is exactly who is named, valid, a client alone, may sign, and stays within the range."""
        random, accepted = Random(14), 0
        any_usage, other_usage = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, ExtendedKeyUsageOID.CODE_SIGNING
        usages = (CLIENT_USAGE, GATEWAY_USAGE, any_usage, other_usage)
        for _ in range(EXCHANGES):
            names = random.sample(("10.99.0.1", "10.99.0.200", "a.example", "10.98.0.1", "::1"), 3)
            names = names[: random.choice((1, 1, 2, 3))]
            chosen = set(random.sample(usages, random.choice((0, 2)))) | {CLIENT_USAGE}
            chosen -= set(usages[: random.choice((0, 0, 0, 1))])
            name = random.choice(("alice", "alice", "x" * 64, "a\nb", "\u00e9", ""))
            start, end = random.choice((-2, -1, -1, 1)) * DAY, random.choice((-1, 1, 1, 2)) * DAY
            signs = random.random() < 0.9
            own = CA.issue(
                name,
                names=names,
                usages=sorted(chosen, key=str),
                start=TODAY + min(start, end - 1),
                end=TODAY + end,
                digital_signature=signs,
            )
            inner = [each for each in names if each != "a.example"]
            good = (
                (name.isprintable() and name != "")
                and (min(start, end - 1) <= 0 <= end)
                and chosen & set(usages[:3]) == {CLIENT_USAGE}
                and signs
                and inner != []
                and all(ip_address(each) in RANGE for each in inner)
            )
            one, other = initiator(Careless(Role.CLIENT, own)), acceptor()
            with contextlib.suppress(ContextFailed):
                other.step(stepped(one, stepped(other, stepped(one, None))))
            self.assertEqual(other.established, good, (name, names, chosen, start, end, signs))
            accepted += good
        self.assertTrue(EXCHANGES / 50 < accepted < EXCHANGES / 2, accepted)


class GatewayTests(SynchronousTestCase):
    """A gateway with certificates, and a client that wants to be served."""

    def setUp(self) -> None:
        """Have a network, and datagrams of a true exchange in it."""
        self.network = CertifiedNetwork()
        self.gateway = self.network.gateways[0]
        self.serve()
        self.recorded = [d for _, d, _, _ in self.network.sent if d[:4] == KEY_EXCHANGE_MARKER]

    def serve(self) -> None:
        """Let the client make new keys."""
        network = self.network
        address, before = self.gateway.endpoint.address, network.client.node.kms.established
        network.send(network.client, HELLO)
        network.act(network.client, network.client.node.authenticate(address, network.now))
        network.run(2)
        self.assertGreater(network.client.node.kms.established, before)

    def hear(self, datagram: bytes, origin: Endpoint) -> list[bytes]:
        """Let the gateway have a datagram; return what it sends back at once."""
        actions = self.gateway.node.key_exchange(datagram, Path(origin), self.network.now)
        return [action.datagram for action in actions if isinstance(action, Send)]

    def test_datagrams(self) -> None:
        """Mutants of true datagrams, those of an exchange under way among them, to either end."""
        network, mutator = self.network, Mutator(Random(12))
        client = network.client
        with Memory() as memory:
            for number in range(DATAGRAMS):
                if number % 100 == 0:
                    if number == DATAGRAMS // 4:
                        memory.begin()
                    network.run(1)
                    network.sent.clear()
                    network.act(client, client.node.authenticate(self.gateway.endpoint.address, network.now))
                if number % 10 == 0:
                    network.run(0.0004)
                for host, peer, acceptances in (
                    (self.gateway, client, self.gateway.node.acceptances),
                    (client, self.gateway, client.node.exchanges.calls),
                ):
                    keys = acceptances.acceptor._half_open
                    live = Live((), [Exchange(*key[1:]) for key in keys])
                    datagram = mutator.datagram(Family.KEY_EXCHANGE, self.recorded, live)
                    datagram = datagram[:6] + bytes([Mechanism.TLS]) + datagram[7:]
                    network.act(host, host.node.key_exchange(datagram, Path(peer.endpoint), network.now))
            network.run(2 * HALF_OPEN_TIME)
            network.sent.clear()
            network.client.events.clear()
            self.gateway.events.clear()
            growth = memory.growth()
        report(self, f"{DATAGRAMS} to each end", growth)
        self.assertLessEqual(growth, GROWTH)
        self.assertEqual(len(self.gateway.node.acceptances.acceptor), 0)
        self.serve()

    def test_strangers(self) -> None:
        """
        Strangers at many addresses, who take the cookie and say hello, get no more than there are exchanges
        for them, and lose them in time; who comes then is served.
        """
        held, random = resident(), Random(13)
        for number in range(STRANGERS):
            origin = Endpoint(ip_address("203.0.113.0") + number % 256, 1024 + number)
            exchange_id = random.randbytes(8)
            first = tokens.Envelope(Mechanism.TLS, exchange_id).fragments(0, bytes(1000))[0]
            (demand,) = self.hear(first, origin)
            message = tokens.decode(demand)
            assert isinstance(message, tokens.CookieDemand)
            context = initiator(prologue=binding(Mechanism.TLS, Role.CLIENT, message.cookie))
            self.greet(context, tokens.Envelope(Mechanism.TLS, exchange_id, message.cookie), origin)
        acceptor_ = self.gateway.node.acceptances.acceptor
        self.assertEqual((len(acceptor_), acceptor_._heavy), (MAX_HEAVY, MAX_HEAVY))
        held = resident() - held
        report(self, f"{STRANGERS} strangers, {len(acceptor_)} of them kept", held)
        self.assertLess(held, MOST_HELD)
        self.network.run(HALF_OPEN_TIME + 1)
        self.assertEqual((len(acceptor_), acceptor_._heavy), (0, 0))
        self.serve()

    def greet(self, context: TLSInitiator, envelope: tokens.Envelope, origin: Endpoint) -> None:
        """Send a whole first token."""
        for datagram in envelope.fragments(0, stepped(context, None)):
            self.hear(datagram, origin)
