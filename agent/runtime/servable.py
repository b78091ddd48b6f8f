"""A loaded version of a model, and the lease on it.

Rules kept here:

- A lease taken keeps the pipeline; a servable that was let go gives no new leases.
- Each role that a version has counts for itself: what it did as an arm is not what it did as the active one.
- The last lease to end reports it and does nothing more: freeing a model is never done on a
  request's thread.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from types import TracebackType
from typing import Final

from agent.bundle import Manifest
from agent.runtime.counters import VersionCounters
from agent.runtime.observer import Observer, observer_of
from agent.runtime.pipeline import Pipeline
from agent.runtime.routing import Share

__all__ = ["ANSWERING", "Beside", "Handle", "Servable", "ServableState"]


class ServableState(StrEnum):
    """Of one loaded version."""

    CANDIDATE = "candidate"
    """Loaded and warm, never active yet: does not answer."""
    ACTIVE = "active"
    """Answers requests that name no version."""
    PREVIOUS = "previous"
    """Was active: still answers requests that name its version."""
    SHADOW = "shadow"
    """Gets copies of requests; answers nobody."""
    ARM = "arm"
    """Answers its share of the requests, and those that name its version."""
    STANDBY = "standby"
    """Warm, to take over at once: does not answer yet."""
    RETIRED = "retired"
    """Let go: gives no new lease, closes when the last one ends."""


ANSWERING: Final = (ServableState.ACTIVE, ServableState.PREVIOUS, ServableState.ARM)
"""States in which a version answers requests that name it."""


class Servable:
    """One version. Its state belongs to the registry."""

    __slots__ = (
        "_gone",
        "_idle",
        "_leases",
        "_lock",
        "_others",
        "_pipeline",
        "answered_before",
        "counters",
        "manifest",
        "observer",
        "saved_form",
        "sha256",
        "shadow",
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
        self.observer: Observer | None = observer_of(pipeline.manifest)
        """Looks at what it answers; None where there is nothing to count."""
        self.sha256 = sha256
        self.state = ServableState.CANDIDATE
        self.answered_before = False
        """It has been active."""
        self.shadow: Beside | None = None
        """Who gets copies of what this version, the active one, is asked; a glance for every request."""
        self.counters = VersionCounters(self._objective_s)
        self._others: list[VersionCounters] = []

    @property
    def _objective_s(self) -> float:
        return self.manifest.objectives.latency_ms / 1000.0

    def take_role(self, role: str) -> None:
        """Count from now on for ``role``. Requests under way count for the role they began with."""
        if role == self.counters.role:
            return
        known = [counters for counters in self._others if counters.role == role]
        taken = known[0] if known else VersionCounters(self._objective_s, role)
        self._others = [it for it in self._others if it is not taken] + [self.counters]
        self.counters = taken

    def all_counters(self) -> "Sequence[VersionCounters]":
        """The counters of the present role, then those of roles it had before."""
        return (self.counters, *self._others)

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


@dataclass(slots=True, eq=False)
class Beside:
    """The version beside the active one and how it takes part. ``share`` may change while it lasts; what a shadow has
    done wrong stays."""

    servable: Servable
    share: Share
    numbers: "count[int]" = field(default_factory=count)
    """One for each request that has no id."""
    timeouts: int = 0
    """Runs of a shadow, one after the other, that had to be ended."""
    suspended: bool = False
    """A shadow that gets no more copies, because of those."""


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
