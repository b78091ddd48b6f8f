"""What the calls of all connections share: the service, the pool, and the bounds of what is under way together.

Rules kept here:

- Everything but ``run`` belongs to the event loop's thread.
- What the pool has done comes back to the loop in one wake-up, however much it is.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from agent.serving.errors import OverloadError
from agent.serving.http2.errors import CallRefusedError
from agent.serving.http2.limits import CallLimits
from agent.serving.placement import Company, Placement
from agent.serving.service import InferenceService, InferRequest
from agent.serving.status import Code

__all__ = ["Desk", "Ran"]


class Ran(NamedTuple):
    """What came of a run, and the thread's seconds for it."""

    answer: bytes | Exception
    took_s: float


class Desk:
    """One for a front end."""

    def __init__(
        self, service: InferenceService, limits: CallLimits, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.service = service
        self.limits = limits
        self.loop = loop
        self.placement = Placement(limits.placement)
        self.company = Company(limits.placement)
        self.requests = 0
        """Calls under way."""
        self.streams = 0
        """Of these, calls of streaming methods."""
        self.held_bytes = 0
        """Of requests and unsent answers."""
        self._pool = ThreadPoolExecutor(limits.pool_threads, thread_name_prefix="http2")
        self._done: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._woken = False

    def take(self, size: int) -> None:
        """So many bytes more are held, or less with a negative number.

        Raises:
            CallRefusedError: no more fit.
        """
        if size > 0 and self.held_bytes + size > self.limits.max_bytes_together:
            raise CallRefusedError(
                Code.RESOURCE_EXHAUSTED,
                f"requests under way hold {self.held_bytes} bytes, {size} more do not fit; try again later",
            )
        self.held_bytes += size

    def check_room(self) -> None:
        """Raises OverloadError when no more calls are taken."""
        if self.requests >= self.limits.max_requests:
            raise OverloadError(f"{self.requests} requests are under way; try again later")

    def check_stream_room(self) -> None:
        """Raises OverloadError when no more streaming calls are taken."""
        if self.streams >= self.limits.max_streams:
            raise OverloadError(f"{self.streams} streams are open, no more fit")

    def run(
        self,
        request: InferRequest,
        remaining_s: Callable[[], float | None],
        clock: Callable[[], float] = time.thread_time,
    ) -> Ran:
        """Run a model. On any thread."""
        began_s = clock()
        answer: bytes | Exception
        try:
            answer = self.service.infer(request, remaining_s, waits=False)
        except Exception as error:  # noqa: BLE001 answered with its status; unknown ones are logged there
            answer = error
        return Ran(answer, clock() - began_s)

    def run_inline(
        self, request: InferRequest, remaining_s: Callable[[], float | None], size: int
    ) -> bytes | Exception:
        """Run a model on the loop's thread and record how long that took."""
        key = (request.model, request.version)
        answer, took_s = self.run(request, remaining_s, self.placement.clock(key))
        if isinstance(answer, bytes):
            self.placement.record_inline(key, request.servable_sha256, size, took_s)
        return answer

    def submit(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Have the pool do ``work``, then call ``then`` on the loop with what came of it, an exception too."""
        self._pool.submit(self._work, work, then)

    def close(self) -> None:
        """Begin nothing more that waits for a thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        try:
            done = work()
        except Exception as error:  # noqa: BLE001 it is what came of it
            done = error
        self._done.append((then, done))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(
                RuntimeError
            ):  # the loop has ended, and all connections with it
                self.loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._woken = False  # first: what is done from now on wakes the loop again
        while self._done:
            then, done = self._done.popleft()
            then(done)
