"""The supervisor's task gives memory back at rest, and goes on looking."""

import asyncio
import contextlib

from agent.at_rest import keep_small
from agent.health.calm import CalmLimits, Work
from tests.support.manual_clock import ManualClock

LIMITS = CalmLimits(rest_s=20, again_s=300, look_s=5)


async def test_once_at_rest_and_again_after_a_deployment() -> None:
    clock, works, given = ManualClock(), [Work(0, (), True)], []

    async def give() -> None:
        given.append(clock.monotonic_s())

    task = asyncio.create_task(keep_small(lambda: works[-1], give, clock, LIMITS))
    await clock.advance(100)
    assert not given, "something was under way all the time"
    works.append(Work(0, ("a",), False))
    await clock.advance(100)
    assert len(given) == 1
    await clock.advance(1000)
    assert len(given) == 1, "nothing has happened since"
    works.append(Work(0, ("b",), False))
    await clock.advance(30)
    assert len(given) == 2
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
