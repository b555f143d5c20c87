"""From a policy file to a configuration: places, keys, what a role needs, what takes a restart."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.files import keyfile
from rvpn.policy import PolicyError
from rvpn.service import configuration
from rvpn.service.configuration import Configuration

CLIENT = """\
[IDENTITY]
PrivateKey = own.key
[TUNNEL]
Tunnel1 = 10.0.0.1 192.0.2.1
"""
GATEWAY = """\
[IDENTITY]
PrivateKey = own.key
[LAN]
Networks = 10.0.0.0/24
"""


class ConfigurationTests(SynchronousTestCase):
    """`read`, and two configurations compared."""

    def setUp(self) -> None:
        """Make a directory with keys."""
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.file = self.directory / "node.policy"
        for name in "own.key", "other.key":
            keyfile.create(str(self.directory / name))

    def read(self, text: str, role: Role = Role.CLIENT) -> Configuration:
        """Read a policy."""
        self.file.write_text(text)
        return configuration.read(self.file, role)

    def test_defaults(self) -> None:
        """The places that a policy does not name depend on the role, and no preshared key is zero."""
        for role, text in (Role.CLIENT, CLIENT), (Role.GATEWAY, GATEWAY):
            read = self.read(text, role)
            self.assertEqual(read.control_socket, Path(f"/run/rvpn/{role.value}.sock"))
            self.assertEqual(read.state_directory, Path(f"/var/lib/rvpn/{role.value}"))
            self.assertEqual(read.credentials.preshared_key, bytes(32))
            self.assertEqual(read.credentials.private_key, keyfile.load(str(self.directory / "own.key")))

    def test_places(self) -> None:
        """Paths are relative to the policy's directory, absolute ones as they are."""
        read = self.read(CLIENT + "[CONTROL]\nSocket = c.sock\nStateDirectory = /srv/state\n")
        self.assertEqual(read.control_socket, self.directory / "c.sock")
        self.assertEqual(read.state_directory, Path("/srv/state"))

    def test_preshared_key(self) -> None:
        """A preshared key is read from its file."""
        read = self.read(CLIENT.replace("own.key", "own.key\nPresharedKey = other.key"))
        self.assertEqual(read.credentials.preshared_key, keyfile.load(str(self.directory / "other.key")))

    def test_secrets_stay_inside(self) -> None:
        """Neither key shows in a representation."""
        read = self.read(CLIENT)
        self.assertNotIn("credentials", repr(read))
        self.assertEqual(repr(read.credentials), "Credentials()")

    def test_unreadable(self) -> None:
        """A policy that cannot be read is named; nobody waits for what a FIFO may bring."""
        error = self.assertRaises(LocalError, configuration.read, self.directory / "no", Role.CLIENT)
        self.assertEqual(
            str(error), f"{self.directory}/no:1: error: cannot read this file: No such file or directory"
        )
        os.mkfifo(self.directory / "fifo")
        self.assertRaises(PolicyError, configuration.read, self.directory / "fifo", Role.CLIENT)

    def test_faulty(self) -> None:
        """Every fault of the policy is told, and then nothing about what it lacks."""
        error = self.assertRaises(PolicyError, self.read, "[TUNNEL]\nTunnel1 = a\nTunnel2 = b\n")
        self.assertEqual([diagnostic.line for diagnostic in error.diagnostics], [2, 3])

    def test_lacking(self) -> None:
        """What the role needs and the policy lacks is told at its section, or at the beginning."""
        for text, role, faults in (
            (GATEWAY, Role.CLIENT, [(1, "no entry in [TUNNEL]")]),
            (CLIENT, Role.GATEWAY, [(1, "no Networks in [LAN]")]),
            ("[LAN]\n\n[IDENTITY]\n", Role.GATEWAY, [(3, "no PrivateKey"), (1, "no Networks")]),
            ("", Role.CLIENT, [(1, "no PrivateKey"), (1, "no entry in [TUNNEL]")]),
        ):
            error = self.assertRaises(PolicyError, self.read, text, role)
            for (line, words), found in zip(faults, error.diagnostics, strict=True):
                self.assertEqual((found.filename, found.line), (str(self.file), line))
                self.assertIn(f"found {words}", found.message)

    def test_fixed(self) -> None:
        """Each setting that takes a restart is named when it changes, and no other is."""
        before = self.read(CLIENT)
        for more, name in (
            ("[GENERAL]\nPort = 4501\n", "Port"),
            ("[GENERAL]\nListen = 192.0.2.1\n", "Listen"),
            ("[GENERAL]\nOffload = off\n", "Offload"),
            ("[DEVICE]\nName = vpn1\n", "Name of [DEVICE]"),
            ("[DEVICE]\nInnerAddress = 10.9.0.1\n", "InnerAddress"),
            ("[LAN]\nInterface = eth1\n", "Interface of [LAN]"),
            ("[LAN]\nPresence = proxy-arp\n", "Presence"),
            ("[CONTROL]\nSocket = c.sock\n", "Socket"),
            ("[CONTROL]\nStateDirectory = state\n", "StateDirectory"),
        ):
            self.assertEqual(before.fixed_but_changed(self.read(CLIENT + more)), [name])
        preshared = CLIENT.replace("own.key", "own.key\nPresharedKey = other.key")
        self.assertEqual(before.fixed_but_changed(self.read(preshared)), ["PresharedKey"])
        (self.directory / "other.key").replace(self.directory / "own.key")
        self.assertEqual(before.fixed_but_changed(self.read(CLIENT)), ["PrivateKey"])

    def test_free_to_change(self) -> None:
        """All other settings may change while the service runs."""
        before = self.read(CLIENT)
        after = self.read(
            CLIENT.replace("Tunnel1 = 10.0.0.1", "Tunnel7 = 10.0.0.0/8")
            + "[GENERAL]\nKeyLifetime = 60\nExchangeTime = 3\nTransforms = aes-gcm-256\nHeartbeat = INSTANT\n"
        )
        self.assertEqual(before.fixed_but_changed(after), [])
