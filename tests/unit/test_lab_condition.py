"""What `rvpn lab status` says is broken."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.lab.condition import words

NAMES = {"198.51.100.21": "gateway1", "198.51.100.22": "gateway2"}
WHOLE: dict[str, Any] = {"down": [], "cut": [], "impaired": [], "mtu": {}, "inner_gateway": None}
CLEAR: dict[str, Any] = {"public": None, "overflowed": 0, "refused": 0, "directions": []}
COUNTS = {"seen": 1200, "lost": 24, "reordered": 0, "duplicated": 1}
LOSSY = {"gateway": "198.51.100.22", "direction": "out", **COUNTS}


class WordsTests(SynchronousTestCase):
    """A line for each thing, and no JSON."""

    def test_whole(self) -> None:
        """Of what is whole, or was mended, nothing is said."""
        for impairment in (None, CLEAR, {**CLEAR, "directions": [LOSSY]}):
            self.assertEqual(words(WHOLE, impairment, NAMES), [])

    def test_broken(self) -> None:
        """Interfaces, paths, MTU and routes."""
        network = {
            "down": ["gateway1 lan"],
            "cut": ["gateway2 back", "gateway2 out"],
            "impaired": [],
            "mtu": {"gateway1": 1300},
            "inner_gateway": "gateway2",
        }
        self.assertEqual(
            words(network, None, NAMES),
            [
                "gateway1: interface lan is down",
                "gateway2: the path to the client is cut",
                "gateway2: the path to the gateway is cut",
                "gateway1: no packet of more than 1300 bytes passes",
                "the targets have a route to the client through gateway2",
            ],
        )

    def test_impaired(self) -> None:
        """The NAT, each impaired path with its counts, and what the impairment itself lost."""
        impairment = {"public": "203.0.113.7", "overflowed": 3, "refused": 0, "directions": [LOSSY]}
        counts = "of 1,200 packets 24 lost, 0 reordered, 1 duplicated"
        self.assertEqual(
            words({**WHOLE, "impaired": ["gateway2 out"]}, impairment, NAMES),
            [
                "the client is behind a NAT, at 203.0.113.7",
                f"gateway2: the path to the gateway is impaired: {counts}",
                "the impairment itself lost packets: 3 overflowed",
            ],
        )
