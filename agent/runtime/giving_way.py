"""A child process that gives way to everything else on the device. Linux only.

A nice value counts among the threads of one session. Where the kernel groups processes by session
(``sched(7)``, autogroup), a child in a session of its own shares the processors evenly with the model
server however nice it is; the session's own value decides, and the parent may set it.

Rules kept here: giving way is a courtesy, so a kernel without it, or one that refuses, changes nothing;
and it can be taken back, because on a busy device a child that always gives way would never end.
"""

import contextlib
from pathlib import Path
from typing import Final

__all__ = ["give_way", "take_turns"]

_LAST: Final = 19
_EVEN: Final = 0


def give_way(pid: int, proc: Path = Path("/proc")) -> bool:
    """Put the session that ``pid`` leads last. Returns whether the kernel does it."""
    return _set(pid, _LAST, proc)


def take_turns(pid: int, proc: Path = Path("/proc")) -> bool:
    """Let the session that ``pid`` leads share the processors evenly again. Returns whether the kernel does it."""
    return _set(pid, _EVEN, proc)


def _set(pid: int, nice: int, proc: Path) -> bool:
    # EAGAIN: not more than ten changes a second on the whole system. A process that has ended: ENOENT or ESRCH.
    with contextlib.suppress(OSError):
        (proc / str(pid) / "autogroup").write_text(str(nice), encoding="ascii")
        return True
    return False
