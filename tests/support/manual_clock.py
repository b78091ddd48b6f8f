"""A clock that only moves when a test moves it, for everything that takes ``agent.ports.Clock``."""

import asyncio
import heapq
import itertools

SETTLE_ROUNDS = 40


class ManualClock:
    """Wall clock and monotonic clock go together; ``set_wall`` moves the wall clock alone."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self._wall_offset_s = now_s
        self._monotonic_s = 1000.0
        self._wall_offset_s -= self._monotonic_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self.offset_minutes = 0

    def now_s(self) -> float:
        return self._monotonic_s + self._wall_offset_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def utc_offset_minutes(self) -> int:
        return self.offset_minutes

    def set_wall(self, now_s: float) -> None:
        self._wall_offset_s = now_s - self._monotonic_s

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic_s + seconds, next(self._order), done))
        await done

    async def settle(self) -> None:
        """Let every task go on until it waits for something."""
        for _ in range(SETTLE_ROUNDS):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Move on, waking each sleeper at its own time."""
        end = self._monotonic_s + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, done = heapq.heappop(self._sleepers)
            if done.done():
                continue
            self._monotonic_s = max(self._monotonic_s, due)
            done.set_result(None)
            await self.settle()
        self._monotonic_s = end
        await self.settle()
