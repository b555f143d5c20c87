"""
The state directory: what outlives a process, in small files that are never half written.

A service opens it once at its start (`StateDirectory(path)`), which creates it with mode 0700, refuses one
that others can enter, and locks it, so that two services never share one. `write` replaces a file as a whole:
a temporary file beside it, fsync, rename, fsync of the directory. `read` returns what the last complete
`write` put there. The kernel releases the lock with the process, however that ends.
"""

import fcntl
import os
from pathlib import Path

from rvpn.errors import LocalError
from rvpn.files.regular import open_to_others

#: Bytes; more than any file that rvpn keeps.
MAX_FILE = 1 << 24


class StateDirectory:
    """
    A directory of this user alone, held by this process alone.

    Raises `LocalError` if it cannot be created or written, belongs to another user, is open to others, or is
    held by another process. `what` is how these errors name it.
    """

    def __init__(self, path: str | os.PathLike[str], what: str = "state directory") -> None:
        self.path = Path(path)
        self._name = f"{what} {self.path}"
        self._descriptor = self._open()
        try:
            self._check()
            self._lock()
        except BaseException:
            self.close()
            raise

    def write(self, name: str, data: bytes) -> None:
        """
        Make `data` the content of the file `name`: after a crash the old or the new content stands there.

        Raises `LocalError` if the disk refuses.
        """
        temporary = self.path / f".{name}.new"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)
            os.fsync(self._descriptor)
        except OSError as error:
            raise LocalError(f"cannot write {self.path / name}: {error.strerror}") from error

    def read(self, name: str) -> bytes | None:
        """Return the content of the file `name`, None if there is none. Unreadable: `LocalError`."""
        try:
            with (self.path / name).open("rb") as file:
                data = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LocalError(f"cannot read {self.path / name}: {error.strerror}") from error
        if len(data) > MAX_FILE:
            raise LocalError(f"{self.path / name} is longer than {MAX_FILE} bytes: rvpn did not write it")
        return data

    def close(self) -> None:
        """Release the lock; the directory must not be used afterwards. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise LocalError(f"cannot open the {self._name}: {error.strerror}") from error

    def _check(self) -> None:
        status = os.fstat(self._descriptor)
        if status.st_uid != os.geteuid():
            raise LocalError(f"the {self._name} belongs to user {status.st_uid}, not to us")
        if open_to_others(status.st_mode):
            raise LocalError(f"others can enter the {self._name}: chmod 700 {self.path}")
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise LocalError(f"cannot write to the {self._name}")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalError(f"another rvpn process uses the {self._name}") from error
