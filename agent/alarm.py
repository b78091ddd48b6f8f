"""A flag that one task waits for, at most so long by the agent's own clock."""

import asyncio

from agent.ports import Clock

__all__ = ["Alarm"]


class Alarm:
    """Set by anyone, waited for by one task; waiting takes the flag down again."""

    __slots__ = ("_clock", "_set", "_waiter")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._set = True
        if self._waiter is not None:
            _wake(self._waiter)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, or ``seconds`` have passed (None: for ever); True when it was set."""
        if not self._set and (seconds is None or seconds > 0):
            await self._wait(seconds)
        was_set, self._set = self._set, False
        return was_set

    async def _wait(self, seconds: float | None) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiter = waiter
        timer: asyncio.Future[None] | None = None
        if seconds is not None:
            timer = asyncio.ensure_future(self._clock.sleep(seconds))
            timer.add_done_callback(lambda _: _wake(waiter))
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
