"""
What a key exchange costs, from the first datagram to the keys of both ends, in memory, with either mechanism.

Run `.venv/bin/python benchmarks/bench_keyexchange.py [--mechanism noise|tls]`; it takes a few seconds and
needs neither privileges nor a network. All on one core; the acceptor's columns are its part alone. Exchanges
with a cookie begin twice, and those of `tls` always do. Bytes are UDP payload, both ways.
"""

import argparse
import random
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path as Directory
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from rvpn.agenda import Agenda
from rvpn.constants import Mechanism, Role, TransformID
from rvpn.errors import CookieRequired
from rvpn.files import certificatefiles
from rvpn.interfaces import Endpoint, Initiation, Parameters, Path, PeerIdentity, SecurityContext
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptor import Acceptor, AcceptRequest
from rvpn.keyexchange.credentials import Credentials
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.keys import derive
from rvpn.keyexchange.noise import public_key
from rvpn.lab import certificates
from rvpn.policy.model import Authority, Policy

EXCHANGES = {Mechanism.NOISE: 2000, Mechanism.TLS: 1000}
ADDRESS, INNER = "192.0.2.1", "10.99.0.1"
PARAMETERS = Parameters(0x1000, (TransformID.AES_GCM_16_256,), (ip_address(INNER),), 7200.0)
PATH = Path(Endpoint(ip_address(ADDRESS), 4500))
SYSTEM_RANDOM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Ends:
    """What client and gateway authenticate with, and whom the client expects."""

    client: Credentials
    gateway: Credentials
    peer: PeerIdentity

    def new_exchange(self) -> InitiatorExchange:
        """Return an exchange that the client is about to begin."""

        def new_context(cookie: bytes) -> SecurityContext:
            now = time.time()
            return self.client.initiator(self.peer, Role.CLIENT, cookie, PARAMETERS, SYSTEM_RANDOM, now)

        return InitiatorExchange(random.randbytes(8), self.peer.mechanism, new_context, 0.0)

    def new_acceptor(self, *, cookies: bool) -> Acceptor:
        """Return a gateway's acceptor that asks for cookies always or, if the mechanism allows, never."""
        mechanism = self.peer.mechanism

        def accept(request: AcceptRequest) -> SecurityContext:
            def authorize(_: Initiation) -> Parameters:
                if cookies and not request.cookie:
                    raise CookieRequired
                return PARAMETERS

            now, cookie = time.time(), request.cookie
            return self.gateway.acceptor(mechanism, None, Role.CLIENT, cookie, authorize, SYSTEM_RANDOM, now)

        return Acceptor({mechanism: accept}, Agenda(), random, 0.0)


def noise() -> Ends:
    """Return ends with pinned keys."""
    client, gateway = random.randbytes(32), random.randbytes(32)
    name = b64encode(public_key(gateway)).decode()
    return Ends(Credentials(client), Credentials(gateway), PeerIdentity(Mechanism.NOISE, name))


def tls() -> Ends:
    """Return ends with Ed25519 certificates, as `rvpn pki` makes them."""
    with TemporaryDirectory() as name:
        place = Directory(name)
        certificates.issue(place, {Role.GATEWAY.value: [ADDRESS]}, {Role.CLIENT.value: [INNER]})
        authority = Authority(1, certificates.AUTHORITY, (ip_network(INNER),))
        client, gateway = (
            Credentials(
                certificates=certificatefiles.load(
                    Policy(
                        certificate=f"{role.value}.pem",
                        certificate_key=f"{role.value}.key",
                        authorities=(authority,),
                    ),
                    place,
                    role,
                )
            )
            for role in (Role.CLIENT, Role.GATEWAY)
        )
    return Ends(client, gateway, PeerIdentity(Mechanism.TLS, ADDRESS))


@dataclass(frozen=True, slots=True)
class Measured:
    """One exchange: seconds in all and of the acceptor, datagrams and bytes both ways."""

    whole: float
    accepting: float
    datagrams: int
    size: int


def measure(ends: Ends, *, cookies: bool) -> Iterator[Measured]:
    """Yield what each exchange took."""
    acceptor = ends.new_acceptor(cookies=cookies)
    for number in range(EXCHANGES[ends.peer.mechanism]):
        begun, accepting, now = perf_counter(), 0.0, float(number)
        sent: list[bytes] = []
        exchange = ends.new_exchange()
        datagrams = exchange.start(now)
        while exchange.context is None:
            sent += datagrams
            arrived = perf_counter()
            answers: list[bytes] = []
            for datagram in datagrams:
                reply = acceptor.receive(tokens.decode(datagram), PATH, now)
                answers += reply.datagrams
                if reply.established is not None:
                    derive(reply.established.context)
                    acceptor.confirmed(reply.established)
            accepting += perf_counter() - arrived
            sent += answers
            datagrams = [d for answer in answers for d in exchange.receive(tokens.decode(answer), now)]
        sent += datagrams
        derive(exchange.context)
        yield Measured(perf_counter() - begun, accepting, len(sent), sum(map(len, sent)))


def report(name: str, ends: Ends, *, cookies: bool) -> None:
    """Print a row."""
    cpu = process_time()
    done = list(measure(ends, cookies=cookies))
    cpu = (process_time() - cpu) / len(done)
    whole, accepting = median(each.whole for each in done), median(each.accepting for each in done)
    datagrams, size = median(each.datagrams for each in done), median(each.size for each in done)
    print(
        f"{name:22}{whole * 1e6:14.0f}{cpu * 1e6:10.0f}{accepting * 1e6:14.0f}{1 / accepting:12.0f}"
        f"{datagrams:11.0f}{size:8.0f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure key exchanges in memory.")
    parser.add_argument("--mechanism", choices=("noise", "tls", "both"), default="both")
    chosen = parser.parse_args().mechanism
    print(
        f"{'':22}{'exchange, us':>14}{'CPU, us':>10}{'acceptor, us':>14}{'accepted/s':>12}"
        f"{'datagrams':>11}{'bytes':>8}"
    )
    if chosen != "tls":
        ends = noise()
        report("noise, one round trip", ends, cookies=False)
        report("noise, with a cookie", ends, cookies=True)
    if chosen != "noise":
        report("tls, with a cookie", tls(), cookies=True)


if __name__ == "__main__":
    main()
