"""New files: complete or not there, for their owner alone, overwriting only what is meant."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rvpn.errors import LocalError
from rvpn.files import newfile


class NewFileTests(SynchronousTestCase):
    """Two files in a directory."""

    def setUp(self) -> None:
        """Choose their names."""
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.first, self.second = self.directory / "first", self.directory / "second"
        self.files = {self.first: b"1", self.second: b"2"}

    def content(self) -> dict[Path, bytes]:
        """Return all that the directory holds, temporary files included."""
        return {path: path.read_bytes() for path in self.directory.iterdir()}

    def test_written(self) -> None:
        """Not even a umask of 0 opens a file to others, and nothing else is left."""
        self.addCleanup(os.umask, os.umask(0))
        newfile.write(self.files)
        self.assertEqual(self.content(), self.files)
        self.assertEqual({path.stat().st_mode & 0o777 for path in self.files}, {0o600})

    def test_existing(self) -> None:
        """If one exists neither is written, even if it appears at the last moment."""
        self.second.write_bytes(b"precious")
        for refuse in (newfile.refuse_existing, lambda _: None):
            self.patch(newfile, "refuse_existing", refuse)
            error = self.assertRaises(LocalError, newfile.write, self.files)
            self.assertIn(f"{self.second}: exists already and is left as it is", str(error))
            self.assertEqual(self.content(), {self.second: b"precious"})

    def test_dangling_link(self) -> None:
        """A link that leads nowhere is something that exists."""
        self.first.symlink_to("nowhere")
        self.assertRaises(LocalError, newfile.write, self.files)
        self.assertEqual([path.name for path in self.directory.iterdir()], ["first"])

    def test_overwrite(self) -> None:
        """What may be overwritten is replaced as a whole, with the rights of a new file."""
        self.first.write_bytes(b"long before")
        self.first.chmod(0o644)
        newfile.write(self.files, overwrite=True)
        self.assertEqual(self.content(), self.files)
        self.assertEqual(self.first.stat().st_mode & 0o777, 0o600)

    def test_no_directory(self) -> None:
        """If there is no place for one, the other is not left behind."""
        lost = self.directory / "nowhere" / "file"
        for overwrite in (False, True):
            error = self.assertRaises(LocalError, newfile.write, {self.first: b"1", lost: b"2"}, overwrite)
            self.assertIn(f"{lost}: cannot create this file: No such file or directory", str(error))
            self.assertEqual(self.content(), {})
