"""The supervisor's task that gives memory back when no deployment is under way and nothing has changed for a while."""

import logging
from collections.abc import Awaitable, Callable

from agent.health.calm import Calm, CalmLimits, Work, gave_back, is_due, seen
from agent.ports import Clock
from agent.runtime.resident import Freed

__all__ = ["keep_small"]

log = logging.getLogger(__name__)


async def keep_small(
    look: Callable[[], Work],
    give: Callable[[], Awaitable[Freed | None]],
    clock: Clock,
    limits: CalmLimits,
) -> None:
    """Run until cancelled. ``give`` does it off the loop."""
    calm = Calm(look(), clock.monotonic_s())
    while True:
        await clock.sleep(limits.look_s)
        calm = seen(calm, look(), clock.monotonic_s())
        if is_due(calm, clock.monotonic_s(), limits):
            freed = await give()
            calm = gave_back(calm, clock.monotonic_s(), limits)
            log.debug("at rest, gave memory back: %s", freed)
