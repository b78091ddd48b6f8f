"""The model server's thread that gives memory back when nothing has been asked for a while.

Rules kept here:
- Nothing of this is on a request's way: a run pays one addition, and a thread of its own looks every few seconds.
- Not while a run or a load is under way, however long.
"""

import logging
import threading
import time
from collections.abc import Callable

from agent.health.calm import Calm, CalmLimits, Work, gave_back, is_due, seen
from agent.runtime.registry import Registry
from agent.runtime.resident import Freed, give_back
from agent.serving.watchdog import RunWatchdog

__all__ = ["AtRest", "work_of"]

_log = logging.getLogger(__name__)


def work_of(registry: Registry, watchdog: RunWatchdog, loading: Callable[[], bool]) -> Work:
    """What the server has done and does."""
    held = [one.sha256 for name in registry.names() for one in registry.versions(name)]
    return Work(watchdog.begun, tuple(held), watchdog.running > 0 or loading())


class AtRest:
    """Looks on from its own thread, which ends with the process or by ``stop``."""

    def __init__(
        self,
        look: Callable[[], Work],
        limits: CalmLimits,
        give: Callable[[], Freed | None] = give_back,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._limits = limits
        self._give = give
        self._clock = clock
        self._stop = threading.Event()
        self._calm = Calm(look(), clock())
        self._thread = threading.Thread(target=self._watch, name="at-rest", daemon=True)

    def start(self) -> None:
        """Begin to look on."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def look(self) -> bool:
        """One look; True when memory was given back."""
        self._calm = seen(self._calm, self._look(), self._clock())
        if not is_due(self._calm, self._clock(), self._limits):
            return False
        freed = self._give()
        self._calm = gave_back(self._calm, self._clock(), self._limits)
        _log.info("at rest, gave memory back: %s", freed)
        return True

    def _watch(self) -> None:
        while not self._stop.wait(self._limits.look_s):
            self.look()
