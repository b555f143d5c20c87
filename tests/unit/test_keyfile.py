"""Key files: made for their owner alone, refused in any other shape, never quoted in an error."""

import os
from base64 import b64decode, b64encode
from pathlib import Path

from nacl.public import PrivateKey
from twisted.trial.unittest import SynchronousTestCase

from rvpn.errors import LocalError
from rvpn.files import keyfile


class KeyFileTests(SynchronousTestCase):
    """A key file is made and read back, or refused in one line."""

    def setUp(self) -> None:
        """Choose a path in trial's directory."""
        self.path = self.mktemp()

    def write(self, content: bytes, mode: int = 0o600) -> None:
        """Write a key file by hand."""
        Path(self.path).write_bytes(content)
        Path(self.path).chmod(mode)

    def refusal(self, path: str | None = None) -> str:
        """Return the one line with which `load` refuses."""
        text = str(self.assertRaises(LocalError, keyfile.load, path or self.path))
        self.assertNotIn("\n", text)
        return text

    def test_round_trip(self) -> None:
        """The public key that `create` returns belongs to the private key that `load` returns."""
        public = keyfile.create(self.path)
        private = PrivateKey(keyfile.load(self.path))
        self.assertEqual(b64decode(public), bytes(private.public_key))
        self.assertEqual(keyfile.public_key(self.path), public)

    def test_created_for_its_owner_alone(self) -> None:
        """Not even a umask of 0 opens the file to others."""
        self.addCleanup(os.umask, os.umask(0))
        keyfile.create(self.path)
        self.assertEqual(Path(self.path).stat().st_mode & 0o777, 0o600)

    def test_preshared(self) -> None:
        """A preshared key has the same form, and two of them differ."""
        keyfile.create_preshared(self.path)
        other = self.mktemp()
        keyfile.create_preshared(other)
        self.assertEqual(len(keyfile.load(self.path)), 32)
        self.assertNotEqual(keyfile.load(self.path), keyfile.load(other))

    def test_never_overwrites(self) -> None:
        """An existing file stays, whatever it holds."""
        self.write(b"precious\n")
        error = self.assertRaises(LocalError, keyfile.create, self.path)
        self.assertIn("exists already", str(error))
        self.assertEqual(Path(self.path).read_bytes(), b"precious\n")

    def test_no_directory(self) -> None:
        """A directory that does not exist is named in one line."""
        error = self.assertRaises(LocalError, keyfile.create, f"{self.path}/key")
        self.assertIn("cannot create", str(error))

    def test_exposed_is_refused(self) -> None:
        """Any right of the group or of others refuses the file, and the way out is named."""
        content = b64encode(bytes(32)) + b"\n"
        for mode in (0o640, 0o604, 0o620, 0o601):
            self.write(content, mode)
            self.assertIn(f"found mode {mode:04o}, expected 0600", self.refusal())
        self.assertIn("chmod 600", self.refusal())

    def test_missing(self) -> None:
        """A missing file says how to make one."""
        self.assertIn(f"rvpn keygen {self.path}", self.refusal())

    def test_no_regular_file(self) -> None:
        """A directory and a FIFO are refused, and the FIFO is not waited for."""
        Path(self.path).mkdir(mode=0o700)
        self.assertIn(self.path, self.refusal())
        fifo = self.mktemp()
        os.mkfifo(fifo, 0o600)
        self.assertIn("not a regular file", self.refusal(fifo))

    def test_wrong_content(self) -> None:
        """Whatever is not 32 bytes in base64 is refused without being quoted."""
        for content, found in (
            (b"", "an empty or overlong file"),
            (b64encode(bytes(32)) * 100, "an empty or overlong file"),
            (b64encode(b"\x5a" * 31), "31 bytes"),
            (b64encode(b"\x5a" * 33), "33 bytes"),
            (b"!!hidden!!", "no base64"),
            (b"\xff\xfe", "no base64"),
            (b64encode(bytes(16)) + b"\n" + b64encode(bytes(16)), "no base64"),
        ):
            self.write(content)
            text = self.refusal()
            self.assertIn(f"found {found}, expected a key of 32 bytes", text)
            self.assertNotIn("hidden", text)

    def test_blank_around_the_key(self) -> None:
        """An editor's missing or extra newline does no harm."""
        for content in (b64encode(b"k" * 32), b" " + b64encode(b"k" * 32) + b"\r\n\n"):
            self.write(content)
            self.assertEqual(keyfile.load(self.path), b"k" * 32)
