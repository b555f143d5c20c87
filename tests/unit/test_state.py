"""What the state directory promises about its files, its access rights and its lock."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rvpn.errors import LocalError
from rvpn.files.state import MAX_FILE, StateDirectory


class StateDirectoryTests(SynchronousTestCase):
    """A directory of one user and one process, whose files are whole."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "state"

    def opened(self) -> StateDirectory:
        """Open the directory until the end of the test."""
        state = StateDirectory(self.path)
        self.addCleanup(state.close)
        return state

    def refusal(self) -> str:
        """Return why the directory is refused."""
        return str(self.assertRaises(LocalError, StateDirectory, self.path))

    def test_created_for_us_alone(self) -> None:
        """A missing directory is created, with its parents, and nobody else may enter it."""
        self.opened()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o700)

    def test_what_was_written_is_read(self) -> None:
        """The last content of a file survives the process that wrote it."""
        first = StateDirectory(self.path)
        first.write("start", b"1")
        first.write("start", b"2")
        first.close()
        self.assertEqual(self.opened().read("start"), b"2")

    def test_missing_file(self) -> None:
        """A file that nobody wrote reads as None."""
        self.assertIsNone(self.opened().read("start"))

    def test_files_are_private(self) -> None:
        """Files are for this user alone, for they may hold secrets."""
        self.opened().write("secret", b"x")
        self.assertEqual((self.path / "secret").stat().st_mode & 0o777, 0o600)

    def test_failed_write_keeps_the_old_content(self) -> None:
        """A write that fails says so in one line and leaves the former content."""
        state = self.opened()
        state.write("start", b"1")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "fsync", full)
        error = self.assertRaises(LocalError, state.write, "start", b"2")
        self.assertIn("No space left on device", str(error))
        self.assertEqual(state.read("start"), b"1")

    def test_half_written_file_is_not_read(self) -> None:
        """What a process left that was killed while it wrote has no effect, and the next write succeeds."""
        state = self.opened()
        state.write("start", b"1")
        (self.path / ".start.new").write_bytes(b"half")
        self.assertEqual(state.read("start"), b"1")
        state.write("start", b"2")
        self.assertEqual(state.read("start"), b"2")

    def test_overlong_file(self) -> None:
        """A file longer than any that rvpn writes is refused, not loaded."""
        state = self.opened()
        with (self.path / "start").open("wb") as file:
            file.truncate(MAX_FILE + 1)
        self.assertRaises(LocalError, state.read, "start")

    def test_held_by_one_process(self) -> None:
        """A second opener is refused until the first closes."""
        first = StateDirectory(self.path)
        self.assertIn("another rvpn process", self.refusal())
        first.close()
        first.close()
        self.opened()

    def test_open_to_others(self) -> None:
        """A directory that others can enter is refused, and the message says what to do."""
        self.path.mkdir(parents=True)
        self.path.chmod(0o750)
        self.assertIn(f"chmod 700 {self.path}", self.refusal())

    def test_of_another_user(self) -> None:
        """A directory of somebody else is refused."""
        self.path.mkdir(parents=True, mode=0o700)
        self.patch(os, "geteuid", lambda: self.path.stat().st_uid + 1)
        self.assertIn("belongs to user", self.refusal())

    def test_not_writable(self) -> None:
        """A directory in which we may not create files is refused."""
        self.path.mkdir(parents=True, mode=0o700)
        self.patch(os, "access", lambda *_: False)
        self.assertIn("cannot write", self.refusal())

    def test_not_a_directory(self) -> None:
        """A file in its place is refused with one line that names it."""
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(b"")
        self.assertIn(str(self.path), self.refusal())
        self.assertNotIn("\n", self.refusal())

    def test_parent_is_not_a_directory(self) -> None:
        """A path through a file is refused."""
        self.path.parent.write_bytes(b"")
        self.assertIn(str(self.path), self.refusal())
