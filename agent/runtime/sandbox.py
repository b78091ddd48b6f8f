"""What a child process takes away from itself before it runs a hostile model. Linux only.

Rules kept here:

- Everything is taken away for good: no new privileges, lowest priority, no core files, no writing
  of files (or only small enough ones), first to go when memory runs out.
- Limits come from the kernel, not from good will: memory (``RLIMIT_DATA``: what the process may
  allocate, not what it may map from files), processor time, open files.
- No network where the kernel allows an unprivileged network namespace; whether it did is reported,
  never assumed. What else it may not do: ``agent.runtime.confine``.
"""

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import Final

__all__ = [
    "die_with_parent",
    "leave_network",
    "limit_cpu",
    "limit_memory",
    "lock_down",
    "no_new_privileges",
    "peak_rss_bytes",
    "rss_bytes",
]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
MAX_OPEN_FILES: Final = 256
DATA_SLACK_BYTES: Final = 256 << 20
"""Above the model's own allowance: stacks of threads and what the allocator reserves without using
it."""


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Have the kernel send this signal when the thread that started this process ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)


def lock_down(max_file_bytes: int = 0) -> None:
    """Lowest priority, no new privileges, no core file, no written file larger than
    ``max_file_bytes``, few open files, and the kernel's first choice when memory runs out."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    with contextlib.suppress(OSError):  # a system without /proc: it has no such choice either
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    no_new_privileges()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, max_file_bytes)
    _limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)


def no_new_privileges() -> None:
    """No program started from here on gains any; the kernel asks for it before it takes a filter."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def leave_network() -> bool:
    """Move into an empty network namespace, if the kernel lets us; before any thread is started.

    Tried with a user namespace first, because a device's agent has no privileges. Returns whether
    it worked.
    """
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    return bool(unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0 or unshare(_CLONE_NEWNET) == 0)


def limit_cpu(seconds: int) -> None:
    """SIGXCPU after so many seconds of processor time, SIGKILL a second later."""
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)


def limit_memory(model_bytes: int) -> None:
    """Let this process allocate ``model_bytes`` (and some slack) more than it has now."""
    _limit(resource.RLIMIT_DATA, _status_bytes("VmData") + model_bytes + DATA_SLACK_BYTES)


def rss_bytes() -> int:
    """Resident memory now."""
    return _status_bytes("VmRSS")


def peak_rss_bytes() -> int:
    """The most resident memory since this program started. (``ru_maxrss`` would include the
    parent's.)"""
    return _status_bytes("VmHWM")


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, never above what is allowed already."""
    allowed = resource.getrlimit(which)[1]
    hard = soft if hard is None else hard
    if allowed != resource.RLIM_INFINITY:
        soft, hard = min(soft, allowed), min(hard, allowed)
    resource.setrlimit(which, (soft, hard))


def _status_bytes(field: str) -> int:
    with Path("/proc/self/status").open(encoding="ascii") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    return 0
