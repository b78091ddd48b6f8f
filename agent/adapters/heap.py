"""One heap for all threads of a process that is mostly idle.

glibc gives each new thread a heap of its own, up to eight a core, and keeps what each has freed for that thread alone.
The supervisor has a dozen threads that hardly ever allocate at the same moment: a heap of their own gains them nothing
and costs the device half a megabyte to two (``python -m benchmarks.idle_memory``).
"""

import ctypes
from typing import Final

__all__ = ["share_one_heap"]

_M_ARENA_MAX: Final = -8


def share_one_heap() -> bool:
    """Call before the first thread starts. Returns whether the C library took it: others than glibc have no such
    thing, and need none."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    return bool(mallopt(_M_ARENA_MAX, 1))
