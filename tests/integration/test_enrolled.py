"""Three gateways and a client with nothing but what `rvpn pki` and `rvpn enroll` made."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rvpn.lab import services
from rvpn.lab.topology import LAN, LAN_NETWORKS
from tests.integration.lab_case import LabTestCase

PATIENCE = 10.0


class EnrolledTests(LabTestCase):
    """An authority in a directory of its own, and a laboratory whose nodes get files from there."""

    timeout = 90

    def setUp(self) -> None:
        """Issue what everybody needs, and write the gateways' policies."""
        self.lab = self.start_lab()
        self.names = self.lab.topology.gateway_names
        self.office = Path(self.mktemp()).absolute()
        self.office.mkdir()
        (self.office / "passphrase").write_text("correct horse\n")
        (self.office / "passphrase").chmod(0o600)
        self.rvpn("pki", "init")
        for name in self.names:
            self.rvpn("pki", "gateway", name, self.address(name))
            self.bring(f"{name}.pem", f"{name}.key")
            self.write(f"{name}.policy", self.gateway_policy(name))
        self.bring("pki/ca.pem", "pki/crl.pem")
        (self.office / "pki/client.policy").write_text(self.template())

    def rvpn(self, *words: str) -> None:
        """Run a command in the office."""
        secret = ("--passphrase-file", "passphrase")
        subprocess.run(
            [sys.executable, "-m", "rvpn", *words, *secret], cwd=self.office, check=True, capture_output=True
        )

    def bring(self, *files: str) -> None:
        """Copy files to where the nodes are."""
        for file in files:
            new = self.lab.directory / "new"
            shutil.copy(self.office / file, new)
            new.rename(self.lab.directory / Path(file).name)

    def write(self, name: str, text: str) -> None:
        """Write a file where the nodes are."""
        (self.lab.directory / name).write_text(text)

    def address(self, name: str) -> str:
        """Return a gateway's outer address."""
        return str(self.lab.topology.gateway_address(name))

    def gateway_policy(self, name: str) -> str:
        """Write the policy of the page, with the places and networks of the laboratory."""
        return f"""
            [GENERAL]
            Mechanism = tls
            Listen = {self.address(name)}
            [IDENTITY]
            Certificate = {name}.pem
            CertificateKey = {name}.key
            [AUTHORITIES]
            Authority1 = ca.pem {" ".join(map(str, self.lab.topology.inner_addresses))}
            Revoked = crl.pem
            [LAN]
            Interface = {LAN}
            Networks = {" ".join(map(str, LAN_NETWORKS))}
            {self.control(name)}"""

    def template(self) -> str:
        """Write what all clients have in common."""
        return f"""
            [GENERAL]
            Heartbeat = INSTANT
            HeartbeatDeferTime = 0.2
            HeartbeatResponseTime = 0.1
            [CLUSTER]
            Cluster 1 = {" ".join(map(self.address, self.names))}
            [TUNNEL]
            Tunnel1 = {LAN_NETWORKS[0]} Cluster 1
            {self.control("client")}"""

    def control(self, name: str) -> str:
        """Write where a service of the laboratory is asked."""
        return f"""
            [CONTROL]
            Socket = {self.lab.directory / name}.sock
            StateDirectory = {self.lab.directory / name}.state
            """

    def enroll(self, *words: str) -> None:
        """Enroll the client, or again, and bring its file to it."""
        self.rvpn("enroll", "alice", *words)
        self.bring("alice.rvpn")
        # The laboratory starts every node by the name of its policy.
        (self.lab.directory / "alice.rvpn").rename(self.lab.directory / "client.policy")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.05)

    def serials(self) -> set[int]:
        """Return the serial numbers of the certificates with which the client is known to gateways."""
        sessions = [s for name in self.alive for s in services.ask_status(self.lab, name)["sessions"]]
        return {session["authentication"]["serial"] for session in sessions}

    def reaches(self) -> bool:
        """Return whether the client reaches a target, through whichever gateway it uses."""
        services.follow(self.lab)
        target = self.lab.topology.lan_addresses(self.lab.topology.target_names[0])[0]
        return bool(self.ping(self.lab, "client", target)["received"] == 5)

    def kill(self, gateway: str) -> str:
        """Kill a gateway; return the one that the client uses then."""
        self.alive.remove(gateway)
        self.lab.signal(gateway, signal.SIGKILL)
        self.wait(lambda: services.in_use(self.lab) in self.alive, "the client uses another gateway")
        return str(services.in_use(self.lab))

    def test_life(self) -> None:
        """The client works from its one file, survives a gateway, renews in its place, and is shut out."""
        self.enroll(*map(str, self.lab.topology.inner_addresses))
        self.alive = list(self.names)
        gateway = services.start_all(self.lab)
        self.assertTrue(self.reaches())
        before = self.serials()

        gateway = self.kill(gateway)
        self.assertTrue(self.reaches())

        self.enroll("--renew")
        services.command(self.lab, "client", "reload")
        self.assertTrue(self.reaches())
        self.assertEqual(self.serials(), before)
        self.kill(gateway)
        self.assertTrue(self.reaches())
        self.assertTrue(self.serials().isdisjoint(before))

        self.rvpn("pki", "revoke", "alice")
        self.bring("pki/crl.pem")
        self.wait(lambda: not self.serials(), "the sessions of a revoked client end")
