"""The supervisor's end of the control channel: requests out, answers matched by id, the ready event
once."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from typing import Any

from agent.errors import BundleError, DeviceError
from agent.serving.control import MAX_LINE_BYTES, Event, Fault, Message, Op, decode, encode

__all__ = ["ControlClient"]


class ControlClient:
    """One connection to one server process. Made by ``open``; ``close`` fails whatever still
    waits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next_id = 0
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._ready: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, end: socket.socket) -> "ControlClient":
        """Take over this end of the socket pair."""
        reader, writer = await asyncio.open_connection(sock=end, limit=MAX_LINE_BYTES)
        return cls(reader, writer)

    async def ready(self) -> Message:
        """The ``ready`` event.

        Raises:
            DeviceError: the server said why it cannot start, or went away.
        """
        return await asyncio.shield(self._ready)

    async def ask(self, op: Op, **arguments: str | float | Mapping[str, Any] | None) -> Message:
        """Send a request and wait for its answer, for as long as the caller likes.

        Raises:
            BundleError: the bundle is at fault. DeviceError: the server is, or it went away.
        """
        if self._task.done():
            raise DeviceError(f"the model server went away before {op}")
        self._next_id += 1
        identity = self._next_id
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[identity] = answer
        try:
            self._writer.write(encode({"id": identity, "op": op, **arguments}))
            await self._writer.drain()
            message = await answer
        except OSError as error:
            raise DeviceError(f"the model server went away during {op}: {error}") from error
        finally:
            del self._waiting[identity]
        if message.get("ok") is True:
            return message
        text = str(message.get("error", "no reason given"))
        raise BundleError(text) if message.get("fault") == Fault.BUNDLE else DeviceError(text)

    async def close(self) -> None:
        """Close this end, which tells the server to stop."""
        self._writer.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(OSError):  # the other end is gone already
            await self._writer.wait_closed()

    async def _read(self) -> None:
        text = "the model server went away"
        try:
            while line := await self._reader.readline():
                self._take(decode(line))
        except (DeviceError, OSError, ValueError) as error:  # ValueError: a line beyond the limit
            text = f"{text}: {error}"
        finally:
            for waiting in (self._ready, *self._waiting.values()):
                if not waiting.done():
                    waiting.set_exception(DeviceError(text))
            self._ready.exception()  # seen here, so that nobody having asked for it is no warning

    def _take(self, message: Message) -> None:
        match message.get("event"):
            case Event.READY if not self._ready.done():
                self._ready.set_result(message)
            case Event.FAILED if not self._ready.done():
                self._ready.set_exception(DeviceError(str(message.get("error", ""))))
            case None:
                answer = self._waiting.get(message.get("id", 0))
                if answer is not None and not answer.done():
                    answer.set_result(message)
