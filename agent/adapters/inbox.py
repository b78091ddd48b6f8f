"""The bounded queue between a transport and the one task that reads its messages.

Rules kept here:
- Never blocks the transport and never grows past its limit: the oldest message goes first. A newer pack replaces an
  older one anyway, and a lost acknowledgement only means that a report is sent again.
- One reader; a reader that stops and begins again misses nothing that is still queued.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from agent.ports import DownlinkMessage
from protos import device_pb2

__all__ = ["Inbox", "downlink_message"]


class Inbox:
    """Messages down, newest kept."""

    __slots__ = ("_arrived", "_dropped", "_queue")

    def __init__(self, limit: int) -> None:
        self._queue: deque[DownlinkMessage] = deque(maxlen=limit)
        self._arrived = asyncio.Event()
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Messages pushed out because the reader was too slow."""
        return self._dropped

    def put(self, message: DownlinkMessage) -> None:
        if len(self._queue) == self._queue.maxlen:
            self._dropped += 1
        self._queue.append(message)
        self._arrived.set()

    async def messages(self) -> AsyncIterator[DownlinkMessage]:
        while True:
            while self._queue:
                yield self._queue.popleft()
            self._arrived.clear()
            await self._arrived.wait()


def downlink_message(down: device_pb2.Downlink) -> DownlinkMessage | None:
    """What a Downlink says; None when it says nothing this agent knows."""
    body = down.WhichOneof("body")
    if body == "ack":
        return DownlinkMessage(ack=down.ack)
    if body == "pack":
        return DownlinkMessage(pack=down.pack)
    return None
