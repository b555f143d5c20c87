"""What the tests of the lab and on the lab share."""

import sys
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.lab.lab import Lab
from rvpn.lab.requirements import missing
from rvpn.lab.topology import Topology


class LabTestCase(SynchronousTestCase):
    """A test with laboratories of its own; skipped, with the reason, where the machine cannot hold one."""

    skip = " ".join(missing()) or None

    def start_lab(self, family: int = 4, gateways: int = 3, targets: int = 3, proxy_arp: bool = False) -> Lab:
        """Return a laboratory that ends with the test."""
        lab = Lab.start(Topology(family, gateways, targets, proxy_arp))
        self.addCleanup(lab.close)
        return lab

    def ping(self, lab: Lab, node: str, address: object, count: int = 5, *more: object) -> dict[str, Any]:
        """Ping quickly, with little patience."""
        quick = ("--count", count, "--interval", 0.002, "--wait", 0.2)
        return lab.traffic(node, "ping", address, *quick, *more)

    def serve(self, lab: Lab, node: str) -> None:
        """Start a target's servers in any node."""
        lab.start_ready(node, [sys.executable, "-m", "rvpn.lab.servers"], f"{node}-server").close()
