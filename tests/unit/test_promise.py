"""What a client promises of failover, as `rvpn status --explain` tells it."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import CONFIRM_SHARE, HeartbeatMode
from tests.unit.simulation import OUT, Network

EXCHANGE = 2.0


def promise(gateways: int = 3, *, connected: bool = True, **policy: Any) -> dict[str, Any]:
    """Return the promise of a client, which uses a gateway if it is `connected`."""
    chosen: dict[str, Any] = {"heartbeat": HeartbeatMode.INSTANT, "exchange_time": EXCHANGE}
    network = Network(gateways, **(chosen | policy))
    if connected:
        network.send(network.client, OUT)
        network.run(0.1)
    status = network.client.node.status(network.now)["promise"]
    assert isinstance(status, dict)
    return status


class PromiseTests(SynchronousTestCase):
    """The bounds follow from the policy, or from what was measured."""

    def test_detection(self) -> None:
        """R7, X8: defer + 2 x response, and the confirm time in the place of defer."""
        told = promise(heartbeat_defer_time=0.25, heartbeat_response_time=0.125, heartbeat_confirm_time=4.0)
        self.assertEqual((told["bound"], told["confirm_bound"]), (0.5, 4.25))
        self.assertIsNone(promise(heartbeat_confirm_time=0.0)["confirm_bound"])

    def test_nothing_measured(self) -> None:
        """X7: times that are `auto` are not known before there is a gateway to measure them with."""
        automatic: dict[str, Any] = {"heartbeat_defer_time": None, "heartbeat_response_time": None}
        told = promise(connected=False, **automatic)
        self.assertEqual((told["defer"], told["response"], told["bound"]), (None, None, None))
        told = promise(**automatic)
        self.assertAlmostEqual(told["bound"], told["defer"] + 2 * told["response"])
        self.assertGreater(told["bound"], 0.0)

    def test_busy_queues(self) -> None:
        """X7, X8: where packets arrive, an answer that is `auto` may take its share of the confirm time."""
        told = promise(heartbeat_response_time=None, heartbeat_confirm_time=1.0)
        self.assertAlmostEqual(told["confirm_bound"], 1.0 + 2 * CONFIRM_SHARE)

    def test_switch(self) -> None:
        """R3, X1: none with a standby; without, an exchange for each other gateway; never, if it is alone."""
        self.assertEqual(promise(standby=1)["switch"], 0.0)
        self.assertEqual(promise(standby=0)["switch"], 2 * EXCHANGE)
        self.assertIsNone(promise(1, standby=1)["switch"])
