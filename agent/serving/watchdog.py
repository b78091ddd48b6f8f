"""Ends model runs that take too long: a 228-byte loop can run for ever and would keep a thread of
the server.

Rules kept here:

- Every run has a deadline: the server's own, or the caller's where that is sooner, but never sooner than the bundle's
  latency objective: a caller in a hurry must not make a model look broken.
- A run over its deadline is told to terminate (``RunOptions.terminate``) and fails as ``timeout``;
  its thread is free again. One thread looks several times a second; a run pays two dictionary
  operations.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agent.runtime.engine import ort

__all__ = ["RunWatchdog"]


class RunWatchdog:
    """Watches the runs of one process."""

    def __init__(self, *, max_run_s: float, look_every_s: float) -> None:
        self._max_run_s = max_run_s
        self._look_every_s = look_every_s
        self._runs: dict[int, tuple[float, Any]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="run-watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watch(self, remaining_s: float | None, objective_s: float) -> Iterator[Any]:
        """The ``RunOptions`` for one run; ``remaining_s`` is what the caller still waits (None: for
        ever)."""
        limit_s = self._max_run_s if remaining_s is None else min(remaining_s, self._max_run_s)
        limit_s = max(limit_s, objective_s)
        options = ort.RunOptions()
        key = id(options)  # alive, hence unique, until removed
        self._runs[key] = (time.monotonic() + limit_s, options)
        try:
            yield options
        finally:
            del self._runs[key]

    def stop(self) -> None:
        """End the watching thread."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(self._look_every_s):
            now_s = time.monotonic()
            for deadline_s, options in list(self._runs.values()):
                if now_s >= deadline_s:
                    options.terminate = True
