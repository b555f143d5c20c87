"""The demonstration, and the services in the lab that it stands on."""

import io
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM

from rvpn.constants import Mechanism, Role
from rvpn.errors import LocalError
from rvpn.lab import demo, faults, services
from rvpn.lab.classify import Kind
from rvpn.lab.lab import Lab
from tests.integration.lab_case import LabTestCase


class DemoTests(LabTestCase):
    """`rvpn lab demo`."""

    def test_passes(self) -> None:
        """
        It passes with IPv4 and pinned keys, and with IPv6 outside and certificates; what it prints is fit for
        a file, and its report is there.
        """
        for family, mechanism in (("4", "noise"), ("6", "tls")):
            report = Path(self.mktemp())
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "rvpn",
                    "lab",
                    "demo",
                    "--family",
                    family,
                    "--mechanism",
                    mechanism,
                    "--report",
                    str(report),
                ],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
            self.assertIn("120 of 120 pings were answered", done.stdout)
            self.assertIn("12 of 12 files and streams arrived unchanged", done.stdout)
            self.assertRegex(done.stdout, r"one TCP connection outlived it all: .* 0 bytes wrong")
            self.assertIn("the client used gateway1, gateway2, gateway3, gateway1", done.stdout)
            self.assertIn(str(report.absolute()), done.stdout)
            self.assertIn("gateway2 without LAN", report.read_text())
            self.assertTrue(done.stdout.replace("\n", "").isprintable())

    def test_failed_check(self) -> None:
        """A check that does not hold is marked, with what was found, and decides the exit code."""
        self.patch(sys, "stdout", out := io.StringIO())
        self.patch(demo, "OUTSIDE_KINDS", demo.OUTSIDE_KINDS - {Kind.ESP})
        self.assertEqual(demo.demonstrate(4, keep=False, report=Path(self.mktemp())), 1)
        (line,) = (line for line in out.getvalue().splitlines() if "outside link carried only" in line)
        self.assertRegex(line, r"^(✗|FAILED) .*; found [0-9,]+ ESP$")
        self.assertIn("session with gateway", out.getvalue(), "the end of a log")

    def test_no_place_for_the_report(self) -> None:
        """Where no report can be written that is said before anything is built."""
        self.patch(sys, "stdout", out := io.StringIO())
        directory = Path(self.mktemp())
        directory.mkdir()
        for place in directory, directory / "missing" / "report":
            with self.assertRaisesRegex(LocalError, "cannot write the report"):
                demo.demonstrate(4, keep=False, report=place)
        self.assertEqual(out.getvalue(), "")

    def test_failed_service(self) -> None:
        """A service that does not start is named, with the end of its log."""
        configure = services.configure

        def spoil(lab: Lab, general: services.General, mechanism: Mechanism) -> None:
            configure(lab, general, mechanism)
            (lab.directory / "gateway2.policy").write_text("[GENERAL]\nHeartbeat = LOUD\n")

        self.patch(sys, "stdout", io.StringIO())
        self.patch(services, "configure", spoil)
        with self.assertRaisesRegex(LocalError, "(?s)the service in gateway2 ended at once.*'LOUD'"):
            demo.demonstrate(4, keep=False, report=Path(self.mktemp()))


class ServiceTests(LabTestCase):
    """The services, started and asked."""

    def start(self, **general: str) -> Lab:
        """Return a laboratory with all services and a session, and this in every [GENERAL]."""
        lab = self.start_lab(targets=1)
        services.configure(lab, {Role.CLIENT: general, Role.GATEWAY: general})
        services.start_all(lab)
        return lab

    def test_in_use(self) -> None:
        """
        The client says which gateway it uses, the first of the cluster, and the targets answer through it.
        """
        lab = self.start()
        self.assertEqual(services.in_use(lab), "gateway1")
        self.assertEqual(lab.status()["network"]["inner_gateway"], "gateway1")
        (session,) = services.ask_status(lab, "gateway1")["sessions"]
        self.assertEqual(session["endpoint"], "192.0.2.1:4500")
        self.assertEqual(self.ping(lab, "client", "10.0.0.1", 20)["lost"], 0)

    def test_no_session(self) -> None:
        """Without a session in time, the end of the client's log says why."""
        lab = self.start_lab(targets=1)
        services.configure(lab)
        services.start(lab, "client")
        self.assertIsNone(services.in_use(lab))
        with self.assertRaisesRegex(LocalError, "(?s)no session after 0.1 s.*rvpn client .* is ready"):
            services.follow(lab, timeout=0.1)

    def test_general(self) -> None:
        """A test's own keywords take the place of the laboratory's."""
        lab = self.start(Port="4501", RandomizeClusters="yes")
        (session,) = services.ask_status(lab, "client")["sessions"]
        self.assertTrue(session["endpoint"].endswith(":4501"), session)

    def test_restart(self) -> None:
        """A service is killed and started anew, and a running one too; it ends on SIGTERM."""
        lab = self.start()
        faults.kill(lab, "gateway2")
        services.wait_ended(lab, "gateway2", 5.0)
        self.assertRaises(LocalError, services.ask_status, lab, "gateway2")
        for _ in range(2):
            faults.restart(lab, "gateway2")
            self.assertEqual(services.ask_status(lab, "gateway2")["sessions"], [])
        lab.signal("gateway2", SIGTERM)
        services.wait_ended(lab, "gateway2", 5.0)
        self.assertEqual(self.ping(lab, "client", "10.0.0.1", 20)["lost"], 0)

    def test_keys(self) -> None:
        """Keys are for their owner alone, and every node has its own."""
        lab = self.start_lab()
        services.configure(lab)
        keys = list(lab.directory.glob("*.key"))
        self.assertEqual({key.stat().st_mode & 0o777 for key in keys}, {0o600})
        self.assertEqual(len({key.read_bytes() for key in keys}), 4)
