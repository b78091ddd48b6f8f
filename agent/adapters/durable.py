"""The one way this device writes a file that must survive a power cut, and what a failing disk means.

Rules kept here:
- Temporary file beside the target, fsync, rename, fsync of the folder. A reader sees the old bytes or
  the new ones, never a mixture, and after the return always the new ones.
- A full disk is ``DiskFullError``, every other failure of the disk is ``DeviceError``; both name the
  file and what to do.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent.delivery import DiskFullError
from agent.errors import DeviceError

__all__ = [
    "disk_errors",
    "free_bytes",
    "fsync_folder",
    "make_folder",
    "remove_durable",
    "rename_durable",
    "write_durable",
]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def disk_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError inside into the agent's errors. ``action``: "write", "read", "remove" ..."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(str(path), None, None) from error
        raise DeviceError(
            f"cannot {action} {path}: {error.strerror or error}; check the disk and its permissions"
        ) from error


def write_durable(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace or make ``path``; when this returns, a power cut cannot take it back.

    Raises:
        DiskFullError: there is no room; the old content stays.
        DeviceError: the disk failed; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with disk_errors("write", path):
        try:
            with os.fdopen(os.open(temporary, flags, mode), "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def rename_durable(source: Path, target: Path) -> None:
    """Put ``source`` in the place of ``target``, beside it; a power cut cannot take that back.

    Raises:
        DeviceError: the disk failed.
    """
    with disk_errors("rename", source):
        source.replace(target)
        fsync_folder(target.parent)


def remove_durable(path: Path) -> None:
    """Remove a file, if it is there; a power cut cannot bring it back. Raises DeviceError."""
    with disk_errors("remove", path):
        path.unlink(missing_ok=True)
        fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_folder(path: Path) -> Path:
    """Make a folder that is ours alone, durably, where there is none. Raises DeviceError."""
    with disk_errors("make", path):
        if not path.is_dir():
            path.mkdir(parents=True, mode=0o700, exist_ok=True)
            fsync_folder(path.parent)
    return path


def free_bytes(path: Path) -> int:
    """Room on the disk of ``path`` that this user may fill. Raises DeviceError."""
    with disk_errors("measure", path):
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize
