"""
What a key exchange costs: mechanism `noise`, from the first datagram to the keys of both ends, in memory.

Run `python benchmarks/bench_keyexchange.py`; it takes a few seconds and needs neither privileges nor a
network. All on one core; the acceptor's columns are its part alone. Exchanges with a cookie begin twice.
"""

import random
from base64 import b64encode
from collections.abc import Iterator
from ipaddress import ip_address
from statistics import median
from time import perf_counter, process_time

from rvpn.agenda import Agenda
from rvpn.constants import Mechanism, Role, TransformID
from rvpn.errors import CookieRequired
from rvpn.interfaces import Endpoint, Initiation, Parameters, Path, PeerIdentity
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptor import Acceptor, AcceptRequest
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.keys import binding, derive
from rvpn.keyexchange.noise import NoiseAcceptor, NoiseInitiator, public_key, tai64n

EXCHANGES = 2000
CLIENT, GATEWAY = random.randbytes(32), random.randbytes(32)
PARAMETERS = Parameters(0x1000, (TransformID.AES_GCM_16_256,), (ip_address("10.99.0.1"),), 7200.0)
PATH = Path(Endpoint(ip_address("192.0.2.1"), 4500))


def new_exchange() -> InitiatorExchange:
    """Return an exchange that the client is about to begin."""

    def new_context(cookie: bytes) -> NoiseInitiator:
        return NoiseInitiator(
            private_key=CLIENT,
            peer=PeerIdentity(Mechanism.NOISE, b64encode(public_key(GATEWAY)).decode()),
            ephemeral=random.randbytes(32),
            prologue=binding(Mechanism.NOISE, Role.CLIENT, cookie),
            timestamp=tai64n(0.0),
            parameters=PARAMETERS,
        )

    return InitiatorExchange(random.randbytes(8), Mechanism.NOISE, new_context, 0.0)


def new_acceptor(*, cookies: bool) -> Acceptor:
    """Return a gateway's acceptor that asks for cookies always or never."""

    def accept(request: AcceptRequest) -> NoiseAcceptor:
        def authorize(_: Initiation) -> Parameters:
            if cookies and not request.cookie:
                raise CookieRequired
            return PARAMETERS

        return NoiseAcceptor(
            private_key=GATEWAY,
            ephemeral=random.randbytes(32),
            prologue=binding(Mechanism.NOISE, Role.CLIENT, request.cookie),
            authorize=authorize,
        )

    return Acceptor({Mechanism.NOISE: accept}, Agenda(), random, 0.0)


def measure(*, cookies: bool) -> Iterator[tuple[float, float]]:
    """Yield the seconds that each exchange took, and those of the acceptor's part."""
    acceptor = new_acceptor(cookies=cookies)
    for number in range(EXCHANGES):
        begun, accepting, now = perf_counter(), 0.0, float(number)
        exchange = new_exchange()
        datagrams = exchange.start(now)
        while exchange.context is None:
            arrived = perf_counter()
            reply = acceptor.receive(tokens.decode(datagrams[0]), PATH, now)
            if reply.established is not None:
                derive(reply.established.context)
                acceptor.confirmed(reply.established)
            accepting += perf_counter() - arrived
            datagrams = exchange.receive(tokens.decode(reply.datagrams[0]), now)
        derive(exchange.context)
        yield perf_counter() - begun, accepting


def main() -> None:
    """Print the table."""
    print(f"{'':14}{'exchange, us':>14}{'CPU, us':>10}{'acceptor, us':>14}{'accepted/s':>12}")
    for name, cookies in (("one round trip", False), ("with a cookie", True)):
        cpu = process_time()
        times = list(measure(cookies=cookies))
        cpu = (process_time() - cpu) / EXCHANGES
        whole, accepting = (median(column) for column in zip(*times, strict=True))
        print(f"{name:14}{whole * 1e6:14.0f}{cpu * 1e6:10.0f}{accepting * 1e6:14.0f}{1 / accepting:12.0f}")


if __name__ == "__main__":
    main()
