"""The shadow: a candidate runs copies of requests, off everybody's way, and is compared with what was answered.

Rules kept here:

- A copy is offered when the answer is whole; what the shadow says, fails or takes reaches no caller.
- Copies wait in one queue, bounded in number and bytes. One that does not fit, or whose turn comes while the model is
  held or the server is busy, is dropped and counted.
- One thread of low priority runs them, one by one: a shadow takes at most one processor, and only what is left of it.
- Memory that a front end may use again is copied, nothing else.
- A run that does not end is terminated like any other. A shadow that hangs ``suspend_after`` times in a row gets no
  more copies until it is shared anew; its window and the log say so.
- Its latency is the processor's time where it runs on one thread of the processor, so that its low priority does not
  count against it, and the clock's elsewhere.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.runtime.agreement import Agreement
from agent.runtime.contract import check_inputs, check_outputs
from agent.runtime.counters import VersionCounters
from agent.runtime.dtypes import Array
from agent.runtime.errors import InferenceError, InputContractError
from agent.runtime.registry import Registry
from agent.runtime.routing import Role, copied
from agent.runtime.servable import Beside, Handle, Servable
from agent.serving.watchdog import RunWatchdog

__all__ = ["SUSPENDED", "Answered", "ShadowLimits", "ShadowRunner"]

SUSPENDED: Final = "suspended"
"""The kind, in the shadow's window, that says it gets no more copies."""
_TEXT_BYTES: Final = 64
"""What an element of text takes beside its characters."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShadowLimits:
    """Bounds of what a shadow may take from the device."""

    max_copies: int = 64
    """That wait, of all models together."""
    max_bytes: int = 32 << 20
    """Of the copies that wait."""
    max_run_s: float = 10.0
    """One run, or the bundle's latency objective where that is longer."""
    busy_runs: int = os.cpu_count() or 1
    """Runs of the server under way from which on it is too busy for a copy."""
    suspend_after: int = 3
    """Runs in a row that had to be ended."""
    nice: int = 10
    """Of the thread. Not the lowest: it takes turns at the interpreter with those that answer, and must give it back
    soon even when the processors are full."""
    max_agreements: int = 16
    """Pairs of versions whose comparison is kept ready."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was answered: by which version, to what, with what."""

    servable: Servable
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class _Copy:
    beside: Beside
    counters: VersionCounters
    answered: Answered
    size_bytes: int


class ShadowRunner:
    """The queue and its thread, for all models of one process. Safe for threads."""

    def __init__(
        self, registry: Registry, watchdog: RunWatchdog, limits: ShadowLimits | None = None
    ) -> None:
        self._registry = registry
        self._watchdog = watchdog
        self._limits = limits or ShadowLimits()
        self._changed = threading.Condition()
        self._copies: deque[_Copy] = deque()
        self._bytes = 0
        self._running = False
        self._thread: threading.Thread | None = None
        self._agreements: dict[tuple[str, str], Agreement] = {}

    def offer(self, beside: Beside, answered: Answered, request_id: str) -> None:
        """A request was answered by the active version; its shadow may get a copy. Never waits, never raises for
        anything that the shadow does."""
        counters = beside.servable.counters
        if counters.role != Role.SHADOW:  # it has just stopped being one
            return
        if not copied(beside.share, request_id, next(beside.numbers)):
            return
        size = _size(answered.inputs) + _size(answered.outputs)
        if beside.suspended or not self._fits(size):
            counters.dropped()
            return
        kept = Answered(answered.servable, _kept(answered.inputs), answered.outputs)
        with self._changed:
            if not self._started():
                counters.dropped()
                return
            self._copies.append(_Copy(beside, counters, kept, size))
            self._bytes += size
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until every copy was run or dropped, for ``timeout_s`` at most. Whether they were."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._copies and not self._running, timeout_s)

    def _fits(self, size: int) -> bool:
        limits = self._limits
        # Unlocked: two callers at once may each add one more, which is no matter.
        return len(self._copies) < limits.max_copies and self._bytes + size <= limits.max_bytes

    def _started(self) -> bool:
        """Whether there is a thread, made at the first copy."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="shadow", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the process may have no more threads: the next copy tries again
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, self._limits.nice)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._copies)
                copy = self._copies.popleft()
                self._bytes -= copy.size_bytes
                self._running = True
            try:
                self._take(copy)
            except Exception:  # noqa: BLE001 one bad copy must not end the thread; it is counted and logged
                _log.exception("a shadow's copy was lost")
            with self._changed:
                self._running = False
                self._changed.notify_all()

    def _take(self, copy: _Copy) -> None:
        """Run a copy, unless the shadow is gone or everything else needs the device."""
        beside, model = copy.beside, copy.answered.servable.manifest.model
        if self._registry.beside(model) is not beside:
            return
        busy = self._watchdog.running >= self._limits.busy_runs
        if beside.suspended or busy or self._registry.is_held(model):
            copy.counters.dropped()
            return
        handle = beside.servable.lease()
        if handle is not None:
            with handle:
                self._shadow(copy, handle)

    def _shadow(self, copy: _Copy, handle: Handle) -> None:
        servable, counters, answered = handle.servable, copy.counters, copy.answered
        manifest = servable.manifest
        clock = time.thread_time if self._registry.on_one_thread(manifest) else time.perf_counter
        began_s = clock()
        try:
            check_inputs(manifest.inputs, answered.inputs)
            with self._watchdog.watch(
                self._limits.max_run_s, counters.objective_s, servable.sha256
            ) as options:
                outputs = handle.pipeline.run(answered.inputs, options)
        except InputContractError:  # what the active version takes and this one does not
            counters.refused()
            return
        except InferenceError as error:
            counters.failed(error.kind)
            self._failed(copy, timeout=error.kind == "timeout")
            return
        except Exception:
            counters.failed("unexpected")
            raise
        copy.beside.timeouts = 0
        findings = check_outputs(manifest.outputs, outputs)
        seen = None if servable.observer is None else servable.observer.look(outputs)
        counters.answered(
            clock() - began_s,
            seen,
            violations=bool(findings.violations),
            non_finite=bool(findings.non_finite),
        )
        agreement = self._agreement(answered.servable, servable)
        counters.compared(agreed=not agreement.difference(answered.outputs, outputs))

    def _failed(self, copy: _Copy, *, timeout: bool) -> None:
        beside = copy.beside
        beside.timeouts = beside.timeouts + 1 if timeout else 0
        if beside.timeouts >= self._limits.suspend_after:
            beside.suspended = True
            copy.counters.noted(SUSPENDED)
            _log.error(
                "the shadow %s of model %r hung %d times in a row and gets no more copies",
                beside.servable.sha256[:12],
                beside.servable.manifest.model,
                beside.timeouts,
            )

    def _agreement(self, active: Servable, other: Servable) -> Agreement:
        key = (active.sha256, other.sha256)
        found = self._agreements.get(key)
        if found is None:
            while len(self._agreements) >= self._limits.max_agreements:
                del self._agreements[next(iter(self._agreements))]
            found = self._agreements[key] = Agreement(active.manifest, other.manifest)
        return found


def _size(arrays: Mapping[str, Array]) -> int:
    return sum(
        array.nbytes
        if array.dtype.kind != "O"
        else sum(_TEXT_BYTES + len(text) for text in array.flat)
        for array in arrays.values()
    )


def _kept(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    return {name: array if _is_ours(array) else array.copy() for name, array in arrays.items()}


def _is_ours(array: Array) -> bool:
    """Whether nobody writes into this memory any more: it is the array's own, or of bytes that never change."""
    base = array.base
    while isinstance(base, type(array)):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base is None or isinstance(base, bytes)
