"""A loaded version of a model, and the lease on it.

Rules kept here:

- A lease taken keeps the pipeline; a servable that was let go gives no new leases.
- The last lease to end reports it and does nothing more: freeing a model is never done on a
  request's thread.
"""

import threading
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType

from agent.bundle import Manifest
from agent.runtime.counters import VersionCounters
from agent.runtime.pipeline import Pipeline

__all__ = ["Handle", "Servable", "ServableState"]


class ServableState(StrEnum):
    """Of one loaded version."""

    CANDIDATE = "candidate"
    """Loaded and warm, never active yet: does not answer."""
    ACTIVE = "active"
    """Answers requests that name no version."""
    PREVIOUS = "previous"
    """Was active: still answers requests that name its version."""
    RETIRED = "retired"
    """Let go: gives no new lease, closes when the last one ends."""


class Servable:
    """One version. Its state belongs to the registry."""

    __slots__ = (
        "_gone",
        "_idle",
        "_leases",
        "_lock",
        "_pipeline",
        "counters",
        "manifest",
        "saved_form",
        "sha256",
        "state",
    )

    def __init__(self, pipeline: Pipeline, sha256: str, *, saved_form: bool = False) -> None:
        """``saved_form``: the pipeline was loaded from the device's own form of the bundle."""
        self._pipeline: Pipeline | None = pipeline
        self._lock = threading.Lock()
        self._leases = 0
        self._gone = threading.Event()
        self.saved_form = saved_form
        self._idle: Callable[[Servable], None] | None = None
        self.manifest: Manifest = pipeline.manifest
        self.sha256 = sha256
        self.state = ServableState.CANDIDATE
        self.counters = VersionCounters(pipeline.manifest.objectives.latency_ms / 1000.0)

    def lease(self) -> "Handle | None":
        """A lease, or None when the servable has been let go."""
        with self._lock:
            if self._idle is not None or self._pipeline is None:
                return None
            self._leases += 1
            return Handle(self, self._pipeline)

    def retire(self, idle: Callable[["Servable"], None]) -> None:
        """Give no new lease; call ``idle`` once when the last one has ended, which may be now."""
        with self._lock:
            if self._idle is not None:
                return
            self._idle = idle
            last = self._leases == 0
        if last:
            idle(self)

    @property
    def closed(self) -> bool:
        """Let go and without leases: its counters do not change any more."""
        return self._pipeline is None

    def close(self, give_back: Callable[[], None] = lambda: None) -> None:
        """Drop the pipeline, then call ``give_back``, which returns the memory to the system. Only
        without leases."""
        with self._lock:
            assert self._leases == 0, f"{self.manifest.model} is closed with {self._leases} leases"
            self._pipeline = None
        give_back()
        self._gone.set()

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until ``close`` is done, for ``timeout_s`` at most. Whether it is."""
        return self._gone.wait(timeout_s)

    def release(self) -> None:
        """One lease ended (``Handle`` calls this)."""
        with self._lock:
            self._leases -= 1
            idle = self._idle if self._leases == 0 else None
        if idle is not None:
            idle(self)


class Handle:
    """A lease: ``with`` gives it back. ``pipeline`` is valid until then."""

    __slots__ = ("pipeline", "servable")

    def __init__(self, servable: Servable, pipeline: Pipeline) -> None:
        self.servable = servable
        self.pipeline = pipeline

    def __enter__(self) -> "Handle":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self.pipeline  # so that the last reference is never a request's
        self.servable.release()
