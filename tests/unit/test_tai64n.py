"""TAI64N labels are those of Bernstein's libtai."""

import random

from twisted.trial.unittest import SynchronousTestCase

from rvpn.keyexchange.tai64n import LABEL_SIZE, tai64n


class LabelTests(SynchronousTestCase):
    """`tai64n` of a time of day."""

    def test_known_label(self) -> None:
        """The epoch of Unix time is 2^62 + 10."""
        self.assertEqual(tai64n(0).hex(), "400000000000000a00000000")
        self.assertEqual(tai64n(1.5).hex(), "400000000000000b1dcd6500")

    def test_sorts_as_time(self) -> None:
        """Labels sort as the times do."""
        times = sorted(random.Random(1).uniform(-1e6, 4e9) for _ in range(500))
        labels = [tai64n(time) for time in times]
        self.assertEqual(labels, sorted(labels))
        self.assertEqual({len(label) for label in labels}, {LABEL_SIZE})
