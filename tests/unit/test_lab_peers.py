"""Other tunnels: whether they are installed, and how they get so."""

import shutil
import subprocess
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn import __version__
from rvpn.lab import peers
from rvpn.lab.figures import NONE, RVPN
from rvpn.lab.peers import PEERS


class PeerTests(SynchronousTestCase):
    """What is said of a peer, on a machine where `installed` are the only programs."""

    installed: dict[str, str]

    def setUp(self) -> None:
        """Replace what would look at this machine, or change it."""
        self.installed = {"apt-get": "/usr/bin/apt-get"}
        self.ran: list[list[str]] = []
        self.patch(shutil, "which", lambda name, **_: self.installed.get(name))
        self.patch(subprocess, "run", self.record)

    def record(self, words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """Take what would have been run; every program has version 2."""
        self.ran.append(words)
        return subprocess.CompletedProcess(words, 0, stdout=f"{words[0]} v2 for Linux\n", stderr="")

    def test_missing(self) -> None:
        """A program that is not there is named, with how to get it; ours needs none."""
        self.assertEqual((PEERS[RVPN].missing, PEERS[NONE].missing), ("", ""))
        self.assertIn("openvpn is not installed", PEERS["openvpn"].missing)
        self.installed["openvpn"] = "/usr/sbin/openvpn"
        self.assertEqual(PEERS["openvpn"].missing, "")

    def test_version(self) -> None:
        """A peer's version is what its program says, ours is our own."""
        self.installed["openvpn"] = "/usr/sbin/openvpn"
        self.assertEqual(PEERS["openvpn"].version, "v2")
        self.assertEqual(PEERS[RVPN].version, __version__)

    def test_install(self) -> None:
        """apt-get gets what is missing, and nothing else."""
        self.installed["openvpn"] = "/usr/sbin/openvpn"
        peers.install([RVPN, "openvpn", "wireguard-go"])
        self.assertEqual([words[:2] for words in self.ran], [["apt-get", "update"], ["apt-get", "install"]])
        self.assertIn("wireguard-go", self.ran[1])
        self.assertNotIn("openvpn", self.ran[1])

    def test_nothing_to_install(self) -> None:
        """Where all is there, or there is no apt-get, nothing is run."""
        peers.install([RVPN])
        del self.installed["apt-get"]
        peers.install(["openvpn"])
        self.assertEqual(self.ran, [])
