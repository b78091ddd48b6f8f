"""One agent a state folder: an advisory lock that the kernel lets go when its process ends, however it ends."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Final

from agent.errors import DeviceError

__all__ = ["StateLock"]

LOCK_NAME: Final = "agent.lock"


class StateLock:
    """Held while the agent runs. A context manager.

    Raises:
        DeviceError: on entering: the folder cannot be made or written, or another agent runs in it.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / LOCK_NAME
        self._fd: int | None = None

    def __enter__(self) -> "StateLock":
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise DeviceError(
                f"cannot use the state folder {self._path.parent}: {error.strerror}. "
                f"Set [device] state_dir to a folder that this user may write."
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise DeviceError(
                f"another agent (process {self.owner_pid() or 'unknown'}) runs in {self._path.parent}: "
                f"stop it, or give this one a state_dir of its own"
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._fd = fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def owner_pid(self) -> int | None:
        """The process that wrote itself into the lock; None when nobody did."""
        try:
            text = self._path.read_text().strip()
        except OSError:
            return None
        return int(text) if text.isdecimal() else None

    def is_held(self) -> bool:
        """Whether some agent runs in the folder now."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False
