"""What is made of the records of continuous traffic: outages, losses, figures."""

from ipaddress import IPv4Address
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rvpn.lab.monitor import Data, Transfer
from rvpn.lab.records import Arrival, Gap, Log, Progress, longest_gap, missing, pack, spread


def arrivals(*received: tuple[int, float]) -> list[Arrival]:
    """Return replies by number and time of arrival."""
    return [Arrival(number, 0.0, when) for number, when in received]


class GapTests(SynchronousTestCase):
    """`longest_gap`."""

    def test_around(self) -> None:
        """The gap that begins before the fault and ends after it counts whole."""
        self.assertEqual(longest_gap([1.0, 2.0, 5.0, 6.0], since=2.5, until=6.0), Gap(2.0, 5.0))

    def test_before(self) -> None:
        """A longer gap that ends before the fault does not count, nor one after the end."""
        self.assertEqual(longest_gap([0.0, 9.0, 10.0, 12.0, 99.0], since=9.5, until=13.0), Gap(10.0, 12.0))

    def test_unordered(self) -> None:
        """Arrivals may stand in any order."""
        self.assertEqual(longest_gap([4.0, 1.0, 3.5], since=2.0, until=4.0), Gap(1.0, 3.5))

    def test_silence(self) -> None:
        """If nothing arrives any more the gap lasts until the end."""
        self.assertEqual(longest_gap([1.0], since=2.0, until=9.0), Gap(1.0, 9.0))
        self.assertAlmostEqual(longest_gap([1.0], since=2.0, until=9.0).length, 8.0)

    def test_nothing_before(self) -> None:
        """Without any arrival the gap is what was looked at."""
        self.assertEqual(longest_gap([], since=2.0, until=9.0), Gap(2.0, 9.0))


class MissingTests(SynchronousTestCase):
    """`missing`."""

    def test_lost(self) -> None:
        """Numbers between the last answered before and the highest answered count as lost."""
        found = arrivals((0, 1.0), (1, 2.0), (4, 5.0), (6, 7.0))
        self.assertEqual(missing(found, since=3.0, until=8.0), 3)

    def test_late(self) -> None:
        """A reply after the end is lost; one out of order is not."""
        found = arrivals((0, 1.0), (2, 3.0), (1, 4.0), (4, 5.0), (3, 9.0))
        self.assertEqual(missing(found, since=1.0, until=8.0), 1)

    def test_duplicate(self) -> None:
        """A reply that comes twice counts once."""
        self.assertEqual(missing(arrivals((0, 1.0), (1, 2.0), (1, 2.1), (3, 3.0)), since=1.0, until=8.0), 1)

    def test_none(self) -> None:
        """Where nothing arrived nothing is known to be lost, nor where everything did."""
        self.assertEqual(missing([], since=1.0, until=8.0), 0)
        self.assertEqual(missing(arrivals((7, 1.0)), since=2.0, until=8.0), 0)
        self.assertEqual(missing(arrivals((7, 1.0), (8, 3.0), (9, 4.0)), since=2.0, until=8.0), 0)


class SpreadTests(SynchronousTestCase):
    """`spread`."""

    def test_figures(self) -> None:
        """The 95th percentile is the smallest value that at least 95 % do not exceed."""
        self.assertEqual(
            spread([value / 100 for value in range(100, 0, -1)]),
            {"min": 0.01, "median": 0.505, "p95": 0.95, "max": 1.0},
        )

    def test_few(self) -> None:
        """Of fewer than twenty values it is the largest."""
        self.assertEqual(spread([0.3, 0.1, 0.2]), {"min": 0.1, "median": 0.2, "p95": 0.3, "max": 0.3})
        self.assertEqual(spread([0.12345])["p95"], 0.1235)


class LogTests(SynchronousTestCase):
    """`Log`."""

    def test_growing(self) -> None:
        """A file is read on from where it was, and a record half written is left for later."""
        path = Path(self.mktemp())
        first, second = Arrival(1, 2.5, 3.5), Arrival(2**40, 4.0, 5.0)
        path.write_bytes(pack(first) + pack(second)[:7])
        log = Log(path, Arrival)
        self.assertEqual(log.read(), [first])
        with path.open("ab") as file:
            file.write(pack(second)[7:])
        self.assertEqual(log.read(), [first, second])
        self.assertEqual(log.read(), [first, second])


class TransferTests(SynchronousTestCase):
    """How a transfer is verified."""

    def test_data(self) -> None:
        """Both ends make the same bytes of a seed, however they are cut; another seed makes others."""
        whole = Data(3).take(200_000)
        other = Data(3)
        self.assertEqual(b"".join(other.take(size) for size in (1, 99_999, 100_000)), whole)
        self.assertNotEqual(Data(4).take(200_000), whole)

    def test_wrong_bytes(self) -> None:
        """Each byte that differs is counted, and the others are verified."""
        path = Path(self.mktemp())
        with path.open("ab", buffering=0) as file:
            transfer = Transfer(IPv4Address("192.0.2.1"), file, rate=1.0)
            transfer._compare(b"abcdef", b"abcdef")
            transfer._compare(b"abXdYf", b"abcdef")
        first, second = Log(path, Progress).read()
        self.assertEqual((first.verified, first.wrong), (6, 0))
        self.assertEqual((second.verified, second.wrong, second.broken), (10, 2, 0))
