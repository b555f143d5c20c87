"""Sessions without a key exchange: contexts that are established, what either end says in them, SPIs."""

from hashlib import blake2b
from ipaddress import ip_address

from rvpn.constants import Mechanism, TransformID
from rvpn.interfaces import Authentication, Endpoint, IPAddress, Parameters, Path, PeerIdentity

PEER = PeerIdentity(Mechanism.NOISE, "c2Vzc2lvbiB0ZXN0cw==")
HERE, THERE = Path(Endpoint(ip_address("192.0.2.1"), 4500)), Path(Endpoint(ip_address("192.0.2.9"), 4500))
INNER = ip_address("10.99.0.1")


class FakeContext:
    """An established context (`SecurityContext`) whose secrets are hashes of its name."""

    established = True
    peer = PEER
    authentication = Authentication(PEER.mechanism, "x25519", "ChaCha20-Poly1305")

    def __init__(self, own: Parameters, peer: Parameters, name: bytes = b"") -> None:
        self.own_parameters, self.peer_parameters = own, peer
        self._name = name

    def step(self, token: bytes | None) -> bytes | None:
        """Nothing more to say."""

    def export(self, label: bytes, length: int) -> bytes:
        """Return the same bytes for the same label at both ends."""
        return (blake2b(label, key=self._name).digest() * 2)[:length]


def offer(spi: int) -> Parameters:
    """Return an initiator's parameters."""
    return Parameters(spi, tuple(TransformID), (INNER,), 7200.0)


def answer(spi: int, transform: TransformID = TransformID.AES_GCM_16_256) -> Parameters:
    """Return an acceptor's parameters."""
    return Parameters(spi, (transform,), (INNER,), 60.0)


class Numbers:
    """A `RandomSource` that gives these SPIs in turn."""

    def __init__(self, *spis: int) -> None:
        self._spis = iter(spis)

    def randbytes(self, n: int, /) -> bytes:
        """Return the next."""
        return next(self._spis).to_bytes(n)

    def random(self) -> float:
        """Never asked for."""
        raise NotImplementedError

    def shuffle(self, x: list[IPAddress], /) -> None:
        """Never asked for."""
        raise NotImplementedError
