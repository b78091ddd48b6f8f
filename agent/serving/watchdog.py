"""Ends model runs that take too long: a 228-byte loop can run for ever and would keep a thread of
the server.

Rules kept here:

- Every run has a deadline: the server's own, or the caller's where that is sooner, but never sooner than the bundle's
  latency objective: a caller in a hurry must not make a model look broken.
- A run over its deadline is told to terminate (``RunOptions.terminate``) and fails as ``timeout``;
  its thread is free again. One thread looks several times a second; a run pays two dictionary
  operations.
- onnxruntime looks at ``terminate`` only between nodes. A run that does not end ``stuck_s`` after it was told to has
  taken its thread for good: the process ends, with the bundle blamed for it, and is started anew.
- While a run lasts, its bundle is marked (``agent.runtime.run_marks``): should it take the process down, the
  supervisor knows which one it was.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from agent.runtime import run_marks
from agent.runtime.engine import ort

__all__ = ["STUCK_S", "RunWatchdog", "end_process"]

STUCK_S: Final = 10.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Run:
    deadline_s: float
    options: Any
    thread: int
    manifest_sha256: str
    late_s: float
    """From then on it takes longer than its latency objective."""
    told_s: float | None = None


def end_process(thread: int) -> None:
    """A run on this thread cannot be ended: blame its bundle and end the process, at once and whatever still runs."""
    run_marks.blame_thread(thread)
    os._exit(run_marks.EXIT_STUCK)


class RunWatchdog:
    """Watches the runs of one process. ``stuck`` is called from the watching thread with the thread of a run that
    did not end within ``stuck_s`` of being told to."""

    def __init__(
        self,
        *,
        max_run_s: float,
        look_every_s: float,
        stuck_s: float = STUCK_S,
        stuck: Callable[[int], None] = end_process,
    ) -> None:
        self._max_run_s = max_run_s
        self._look_every_s = look_every_s
        self._stuck_s = stuck_s
        self._stuck = stuck
        self._runs: dict[int, _Run] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="run-watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watch(
        self, remaining_s: float | None, objective_s: float, manifest_sha256: str = ""
    ) -> Iterator[Any]:
        """The ``RunOptions`` for one run of the bundle on this thread; ``remaining_s`` is what the caller still waits
        (None: for ever)."""
        limit_s = self._max_run_s if remaining_s is None else min(remaining_s, self._max_run_s)
        limit_s = max(limit_s, objective_s)
        options = ort.RunOptions()
        key = id(options)  # alive, hence unique, until removed
        place = run_marks.begin(manifest_sha256)
        now_s = time.monotonic()
        self._runs[key] = _Run(
            now_s + limit_s, options, threading.get_ident(), manifest_sha256, now_s + objective_s
        )
        try:
            yield options
        finally:
            del self._runs[key]
            run_marks.end(place)

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return len(self._runs)

    def overdue(self) -> dict[str, int]:
        """Runs under way that take longer than their latency objective by now, by manifest digest. A run counts only
        when it ends; until then this is all that shows of one that hangs."""
        now_s = time.monotonic()
        found: dict[str, int] = {}
        for run in list(self._runs.values()):
            if now_s > run.late_s and run.manifest_sha256:
                found[run.manifest_sha256] = found.get(run.manifest_sha256, 0) + 1
        return found

    def stop(self) -> None:
        """End the watching thread."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(self._look_every_s):
            now_s = time.monotonic()
            for run in list(self._runs.values()):
                if run.told_s is not None:
                    if now_s - run.told_s >= self._stuck_s:
                        _log.error("a run did not end %.0f s after it was told to", self._stuck_s)
                        self._stuck(run.thread)
                elif now_s >= run.deadline_s:
                    run.options.terminate = True
                    run.told_s = now_s
