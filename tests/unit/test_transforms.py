"""`rvpn.service.transforms`: the measurement behind `Transforms = auto`."""

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import TransformID
from rvpn.service import transforms


class FastestTests(SynchronousTestCase):
    """Which is the fastest."""

    def test_order(self) -> None:
        """The one that took less time comes first."""
        for times in ({20: 1.0, 28: 2.0}, {20: 2.0, 28: 1.0}):
            self.patch(transforms, "seconds", lambda transform, times=times: times[transform])
            self.assertEqual(transforms.fastest_first(), tuple(sorted(TransformID, key=times.__getitem__)))

    def test_measured(self) -> None:
        """Each transform is measured, and takes some time."""
        self.assertTrue(all(0 < transforms.seconds(transform) < 1 for transform in TransformID))
