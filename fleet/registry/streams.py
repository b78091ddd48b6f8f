"""The calls of each device that are under way, so that they can be ended when the device may not speak any more.

Rules kept here: used from the event loop's thread only; a closed stream ends at its next step, nobody waits for it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["OpenStreams"]


class OpenStreams:
    def __init__(self) -> None:
        self._open: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def entered(self, device_id: str) -> Iterator[asyncio.Event]:
        """For the length of a call; the event is set when the call has to end."""
        closed = asyncio.Event()
        self._open.setdefault(device_id, set()).add(closed)
        try:
            yield closed
        finally:
            theirs = self._open[device_id]
            theirs.discard(closed)
            if not theirs:
                del self._open[device_id]

    def close(self, device_id: str) -> int:
        """End every call of this device; how many there were."""
        theirs = self._open.get(device_id, set())
        for closed in theirs:
            closed.set()
        return len(theirs)
