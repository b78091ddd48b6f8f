"""The machine's clocks."""

import asyncio
import time

__all__ = ["SystemClock"]


class SystemClock:
    """Implements ports.Clock."""

    __slots__ = ()

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()

    def utc_offset_minutes(self) -> int:
        return (time.localtime().tm_gmtoff or 0) // 60

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 0.0))
