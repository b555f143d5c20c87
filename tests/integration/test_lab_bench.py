"""The benchmark for real, quickly: that it measures, not how much."""

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from rvpn.cli import main
from rvpn.lab import peers
from rvpn.lab.bench_command import CHART_FILE, JSON_FILE, TABLE_FILE
from rvpn.lab.figures import METRICS, table
from tests.integration.lab_case import LabTestCase

#: MB that a gateway with one session may take.
MOST_MEMORY = 60


class BenchTests(LabTestCase):
    """`rvpn lab bench`."""

    def bench(self, *words: str) -> tuple[int, str, str]:
        """Run it; return its exit code, output and errors."""
        output, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(output), redirect_stderr(errors):
            code = main(["lab", "bench", *words])
        return code, output.getvalue(), errors.getvalue()

    def test_rounds(self) -> None:
        """All is measured, memory is within its limit; a peer that is missing is left out, with a word."""
        self.patch(shutil, "which", lambda name, **_: None if name == "wireguard-go" else f"/usr/bin/{name}")
        directory = Path(self.mktemp())
        words = ("--rounds", "1", "--seconds", "0.3", "--peers", "wireguard-go")
        code, output, errors = self.bench(*words, "--json", "--write", str(directory))
        self.assertEqual(code, 0, errors)
        result = json.loads(output)
        self.assertEqual(set(result["peers"]), {"none", "rvpn"})
        for metric in METRICS:
            self.assertGreater(metric.of(result["peers"]["rvpn"]) or 0, 0, metric.key)
        self.assertLessEqual(result["peers"]["rvpn"]["rss_mb"], MOST_MEMORY)
        self.assertEqual(len(result["rounds"]), 1)
        self.assertIn("wireguard-go is left out: wireguard-go is not installed", errors)
        self.assertIn("not installed", result["absent"]["wireguard-go"])
        self.assertEqual(json.loads((directory / JSON_FILE).read_text()), result)
        self.assertEqual((directory / TABLE_FILE).read_text(), table(result))
        self.assertTrue((directory / CHART_FILE).read_text().startswith("<svg "))

    def test_bad_path(self) -> None:
        """On a slow path only what goes through the tunnel is measured, and takes its time."""
        code, output, errors = self.bench("--rounds", "1", "--seconds", "0.3", "--delay", "5", "--json")
        self.assertEqual(code, 0, errors)
        (ours,) = json.loads(output)["peers"].values()
        self.assertGreaterEqual(ours["ping_ms"]["p50"], 10)
        self.assertGreater(ours["tcp_up_mbps"], 0)
        self.assertNotIn("udp100_pps", ours)

    def test_saturation(self) -> None:
        """At saturation heartbeats and new keys are counted; how well it went is another question."""
        code, output, errors = self.bench("--saturate", "4", "--json")
        self.assertIn(code, (0, 1), errors)
        found = json.loads(output)["saturation"]
        self.assertEqual(found["passed"], code == 0)
        for key in ("heartbeats", "rekeys", "tcp_up_mbps", "tcp_down_mbps", "udp100_pps"):
            self.assertGreater(found[key], 0, key)


class PeerTests(LabTestCase):
    """Other tunnels, where they are installed."""

    def carries(self, name: str) -> None:
        """Assert that the target answers through that tunnel, whose processes are known."""
        if reason := peers.PEERS[name].missing:
            self.skipTest(reason)
        lab = self.start_lab(gateways=1, targets=1)
        peers.PEERS[name].start(lab)
        self.assertEqual(self.ping(lab, "client", lab.topology.lan_addresses("target1")[0])["lost"], 0)
        self.assertEqual({"client", "gateway1"}, set(lab.status()["processes"]))

    def test_openvpn(self) -> None:
        """OpenVPN."""
        self.carries("openvpn")

    def test_wireguard(self) -> None:
        """wireguard-go."""
        self.carries("wireguard-go")
