"""Gives memory back that a process at rest does not use: garbage, freed heap, and the mapping of library code.

Rules kept here:
- Nothing here can lose data. Pages of a library are let go only where the file itself says that nothing writes to
  them, and the kernel says that nothing has; they stay in the page cache, and the next use maps them again.
- Model weights are never touched: a mapped file that is no ELF library is left alone.
- What a system does not have (glibc's trim, ``/proc``, ``madvise``) is left out; never an error.
- Slow by the measure of a request (tens of milliseconds): ``agent.health.calm`` says when.
- No numpy, no onnxruntime: the supervisor uses this too.

What it is worth: freed heap is memory that nobody else could have had. Library pages the kernel could have taken back
by itself under pressure; let go, they are counted for whoever really uses them, and go first.
"""

import ctypes
import gc
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from agent.runtime.elf_segments import HEAD_BYTES, FileRange, never_written

__all__ = ["Freed", "Span", "give_back", "trim_heap", "unwritten_spans"]

_SMAPS: Final = Path("/proc/self/smaps")
_STATM: Final = Path("/proc/self/statm")
_DONTNEED: Final[int | None] = getattr(mmap, "MADV_DONTNEED", None)
_WRITTEN: Final = frozenset({"Anonymous:", "Swap:", "Locked:"})
"""Where any of these is not 0, a mapping holds more than the file does, or is held on purpose."""


@dataclass(frozen=True, slots=True)
class Freed:
    """By how much less is resident: the process's own, and of mapped files. Bytes, as the kernel counts them."""

    own_bytes: int
    mapped_bytes: int


class Span(NamedTuple):
    """A range of addresses, in whole pages."""

    start: int
    size: int


class _Mapping(NamedTuple):
    start: int
    end: int
    offset: int
    path: str


def give_back() -> Freed | None:
    """Collect garbage, return freed heap to the system, and let go of library code. Takes tens of milliseconds.

    Returns:
        What that freed; None where the system does not say.
    """
    before = _resident()
    _let_go_of_code()
    gc.collect()
    trim_heap()
    after = _resident()
    if before is None or after is None:
        return None
    return Freed(max(0, before[0] - after[0]), max(0, before[1] - after[1]))


def trim_heap() -> None:
    """Ask the C library to return freed memory to the system; only glibc has this."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def unwritten_spans(
    smaps: Iterable[str],
    segments_of: Callable[[str], Sequence[FileRange]],
    page: int = mmap.PAGESIZE,
) -> Iterator[Span]:
    """The parts of private, read-only mappings that hold what their file holds and are never written to.

    Args:
        smaps: the lines of ``/proc/PID/smaps``.
        segments_of: ``never_written`` of the file at a path.
        page: its size in bytes.
    """
    for mapping in _untouched(smaps):
        offset_end = mapping.offset + mapping.end - mapping.start
        for segment in segments_of(mapping.path):
            whole = FileRange(_floor(segment.start, page), _floor(segment.end + page - 1, page))
            if mapping.offset < whole.start or offset_end > whole.end:
                continue  # also a library that is being loaded: its first mapping covers all segments
            # A page at the edge may belong to the next segment as well.
            first = max(mapping.offset, _floor(segment.start + page - 1, page))
            last = min(offset_end, _floor(segment.end, page))
            if last > first:
                yield Span(mapping.start + first - mapping.offset, last - first)
                break


def _floor(value: int, page: int) -> int:
    return value // page * page


def _untouched(smaps: Iterable[str]) -> Iterator[_Mapping]:
    """Mappings of files, private and read-only, of which nothing was changed."""
    mapping: _Mapping | None = None
    resident = False
    for line in smaps:
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):
            if mapping is not None and resident:
                yield mapping
            mapping, resident = _mapping(words), False
        elif words[0] == "Rss:":
            resident = words[1] != "0"
        elif words[0] in _WRITTEN and words[1] != "0":
            mapping = None
    if mapping is not None and resident:
        yield mapping


def _mapping(words: Sequence[str]) -> _Mapping | None:
    """From the first line of an entry; None when it is written to, shared, or of no file."""
    if len(words) < 6 or words[1] not in ("r-xp", "r--p") or not words[5].startswith("/"):
        return None
    start, _, end = words[0].partition("-")
    return _Mapping(int(start, 16), int(end, 16), int(words[2], 16), words[5].rstrip("\n"))


def _let_go_of_code() -> None:
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None or _DONTNEED is None:
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    known: dict[str, Sequence[FileRange]] = {}

    def segments_of(path: str) -> Sequence[FileRange]:
        if path not in known:
            known[path] = _segments(path)
        return known[path]

    try:
        with _SMAPS.open(encoding="utf-8", errors="replace") as lines:
            spans = list(unwritten_spans(lines, segments_of))
    except OSError:  # no /proc: nothing is let go
        return
    for span in spans:
        madvise(span.start, span.size, _DONTNEED)  # what it refuses stays as it was


def _segments(path: str) -> Sequence[FileRange]:
    try:
        with Path(path).open("rb", buffering=0) as file:
            return never_written(file.read(HEAD_BYTES))
    except (
        OSError
    ):  # replaced or removed since it was mapped: the kernel's path has a note to that effect
        return ()


def _resident() -> tuple[int, int] | None:
    """Bytes of the process's own, and of mapped files; None where the system does not say."""
    try:
        words = _STATM.read_text(encoding="ascii").split()
    except OSError:
        return None
    resident, shared = int(words[1]), int(words[2])
    return (resident - shared) * mmap.PAGESIZE, shared * mmap.PAGESIZE
