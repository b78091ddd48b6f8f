"""Work that would hold up the event loop, and how it ends when its task is cancelled.

A thread cannot be stopped half-way. Whoever waits for one waits to its end, even when cancelled:
otherwise it would go on writing beside whatever comes next.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

__all__ = ["Offload", "run_inline", "run_to_end"]

P = ParamSpec("P")
T = TypeVar("T")


class Offload(Protocol):
    """Runs blocking work off the loop; ``asyncio.to_thread`` is one."""

    async def __call__(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


async def run_inline(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run on the loop itself: for simulated disks, where order must not depend on threads."""
    return work(*args, **kwargs)


async def run_to_end(
    offload: Offload, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Like ``offload(work, ...)``; a cancellation is passed on only after ``work`` has ended."""
    task: asyncio.Task[T] = asyncio.ensure_future(offload(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: the caller is told of the cancellation instead
        raise
