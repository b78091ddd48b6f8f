"""Which bundle each thread of the model server is in, written where a native crash cannot take it along.

The supervisor makes a small memory file and gives it to the server. A run writes the bundle's digest into a place of
it before it enters onnxruntime and takes it out afterwards: two writes into mapped memory, about a microsecond. When
the process dies, whatever killed it, the supervisor reads the file. Behind the places Python's fault handler writes
which thread a signal struck, so that of several runs the right one is blamed.

Rules kept here:

- No numpy, no onnxruntime: the supervisor imports this.
- A mark that cannot be made (no file, no place left) never stops a run.
- The file comes from a process that ran a hostile model: what is read from it are digests or nothing.
"""

import faulthandler
import mmap
import os
import re
import struct
import threading
from collections import deque
from typing import Final

__all__ = [
    "EXIT_STUCK",
    "FILE_BYTES",
    "RunMarks",
    "begin",
    "blame_thread",
    "clear_file",
    "end",
    "install",
    "make_file",
    "read_suspects",
]

EXIT_STUCK: Final = 70
"""Exit code of a server that ended itself because a run would not end."""

_PLACES: Final = 256
_PLACE: Final = struct.Struct("<QQ32s")  # state, thread, digest
_STATE: Final = struct.Struct("<Q")
_RUNNING: Final = 1
_STUCK: Final = 2
_PLACES_BYTES: Final = _PLACES * _PLACE.size
FILE_BYTES: Final = _PLACES_BYTES + 32 * 1024
"""Places, and room for the fault handler's text."""
_STRUCK: Final = re.compile(rb"Current thread 0x([0-9a-f]{1,16}) ")


def make_file() -> int:
    """A new, empty file of marks, in memory; the descriptor is the caller's to close. Raises OSError."""
    descriptor = os.memfd_create("muster-run-marks")
    try:
        clear_file(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def clear_file(descriptor: int) -> None:
    """Make a file of marks as good as new, for the next process. Raises OSError."""
    os.ftruncate(descriptor, 0)
    os.ftruncate(descriptor, _PLACES_BYTES)


class RunMarks:
    """The server's end of the file; safe for threads."""

    def __init__(self, descriptor: int) -> None:
        """Raises OSError or ValueError when the file cannot be mapped."""
        self._memory = mmap.mmap(descriptor, _PLACES_BYTES)
        self._free = deque(range(0, _PLACES_BYTES, _PLACE.size))

    def begin(self, digest: bytes) -> int | None:
        """This thread enters the bundle with this digest (32 bytes). Returns the place, to be given back."""
        try:
            place = self._free.popleft()
        except IndexError:
            return None
        _PLACE.pack_into(self._memory, place, _RUNNING, threading.get_ident(), digest)
        return place

    def end(self, place: int | None) -> None:
        if place is not None:
            _STATE.pack_into(self._memory, place, 0)
            self._free.append(place)

    def blame(self, thread: int) -> None:
        """The run on this thread (``threading.get_ident``) does not end."""
        for place in range(0, _PLACES_BYTES, _PLACE.size):
            state, owner, _ = _PLACE.unpack_from(self._memory, place)
            if state == _RUNNING and owner == thread:
                _STATE.pack_into(self._memory, place, _STUCK)


def read_suspects(descriptor: int) -> tuple[str, ...]:
    """Digests of the bundles that may have ended the process, once it is dead: the stuck one, else the one whose
    thread was struck, else every one that was running. Empty when none was, or when the file cannot be read."""
    try:
        raw = os.pread(descriptor, FILE_BYTES, 0)
    except OSError:
        return ()
    raw = raw.ljust(_PLACES_BYTES, b"\0")
    runs = [run for run in _PLACE.iter_unpack(raw[:_PLACES_BYTES]) if run[0]]
    struck = _STRUCK.search(raw, _PLACES_BYTES)
    stuck = [run for run in runs if run[0] == _STUCK]
    hit = [run for run in runs if struck is not None and run[1] == int(struck[1], 16)]
    return tuple(dict.fromkeys(run[2].hex() for run in stuck or hit or runs))


_installed: RunMarks | None = None


def install(descriptor: int) -> None:
    """Make this process write its marks, and the thread that a fatal signal strikes, into the file.

    Raises OSError or ValueError when the file cannot be mapped.
    """
    global _installed  # noqa: PLW0603 (one process, one file)
    _installed = RunMarks(descriptor)
    os.lseek(descriptor, _PLACES_BYTES, os.SEEK_SET)
    faulthandler.enable(descriptor, all_threads=True)


def begin(manifest_sha256: str) -> int | None:
    """``RunMarks.begin`` of this process; None where nobody keeps marks."""
    if _installed is None or not manifest_sha256:
        return None
    return _installed.begin(bytes.fromhex(manifest_sha256))


def end(place: int | None) -> None:
    """``RunMarks.end`` of this process."""
    if place is not None and _installed is not None:
        _installed.end(place)


def blame_thread(thread: int) -> None:
    """``RunMarks.blame`` of this process."""
    if _installed is not None:
        _installed.blame(thread)
