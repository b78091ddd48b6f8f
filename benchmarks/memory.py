"""Memory of some processes as it would be were they alone on the machine.

The kernel's own PSS divides a page by every process that maps it, so that a test, a second agent or the benchmark
itself makes a server look smaller than it is. Here a file is shared among the given processes alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["alone_bytes", "own_bytes"]


def alone_bytes(pids: Sequence[int]) -> Mapping[int, float]:
    """Of each process: what is its own, and of each mapped file its resident part over how many of ``pids`` map it."""
    maps = {pid: _mapped(pid) for pid in pids}
    users = Counter(path for _, files in maps.values() for path in files)
    return {
        pid: own + sum(size / users[path] for path, size in files.items())
        for pid, (own, files) in maps.items()
    }


def own_bytes(pid: int) -> int:
    """What is the process's own and of no file: the kernel cannot have it back."""
    return _mapped(pid)[0]


def _mapped(pid: int) -> tuple[int, Mapping[str, int]]:
    """Bytes that are the process's own, and the resident bytes of each file it maps."""
    own = 0
    files: Counter[str] = Counter()
    path = ""
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            path = words[5] if len(words) > 5 and words[5].startswith("/") else ""
        elif words[0] == "Rss:":
            resident = int(words[1]) * 1024
            if path:
                files[path] += resident
            else:
                own += resident
        elif words[0] == "Anonymous:" and path:  # written to: a copy of its own
            changed = int(words[1]) * 1024
            files[path] -= changed
            own += changed
    return own, files
