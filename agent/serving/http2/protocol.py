"""One connection on the event loop: bytes between a transport and ``connection``.

Rules kept here:

- All that one read made is one write.
- What the peer does not read waits in its streams, within a bound. A peer that does nothing where it should is given
  up.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from agent.serving.http2.calls import Calls
from agent.serving.http2.connection import Connection
from agent.serving.http2.desk import Desk
from agent.serving.http2.errors import ErrorCode
from agent.serving.http2.grpc_messages import CallHead
from agent.serving.http2.headers import Fields
from agent.serving.http2.limits import FrontLimits, Http2Limits

__all__ = ["Http2Protocol", "Surroundings"]

CLOSE_BYTES: Final = 1 << 16
"""A connection is aborted, not closed, when more than that waits for a peer that has broken the protocol."""


@dataclass(slots=True)
class Surroundings:
    """What the protocols of one front end share. ``now_s`` is the time of the last look at all connections."""

    desk: Desk
    read: Callable[[Fields], CallHead]
    http2: Http2Limits
    limits: FrontLimits
    connections: "set[Http2Protocol]"
    now_s: float
    last_gone: asyncio.Event
    """Set while there is no connection."""


class Http2Protocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._connection: Connection[CallHead] = Connection(
            around.read, around.http2, max_write_bytes=around.limits.max_write_bytes
        )
        self._calls = Calls(around.desk, self._connection, self.flush)
        self._transport: Any = None
        self._paused = False
        self._charged = 0
        self._asked = False
        self._made_s = self._heard_s = self._moved_s = self._used_s = around.now_s

    # --- the transport's side ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = transport
        around = self._around
        around.connections.add(self)
        around.last_gone.clear()
        self._transport.set_write_buffer_limits(high=around.limits.max_write_bytes)
        if len(around.connections) > around.limits.max_connections:
            text = f"{around.limits.max_connections} connections are open, no more are taken"
            self._connection.close(ErrorCode.ENHANCE_YOUR_CALM, text)
        self.flush()

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        self._heard_s = self._around.now_s
        self._asked = False
        connection = self._connection
        events = connection.receive(data)
        if events:
            self._used_s = self._heard_s
            self._calls.take(events)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        self._connection.close(ErrorCode.NO_ERROR, "")
        self._calls.close()
        self._charge()
        around = self._around
        around.connections.discard(self)
        if not around.connections:
            around.last_gone.set()

    def pause_writing(self) -> None:
        """asyncio's."""
        self._paused = True
        self._connection.writable(False)

    def resume_writing(self) -> None:
        """asyncio's."""
        self._paused = False
        self._connection.writable(True)
        self._connection.pump()
        self.flush()

    # --- the server's side ------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what there is to send, as long as it is taken."""
        connection = self._connection
        if self._transport.is_closing():
            return
        self._write()
        while connection.drained():
            self._calls.windows_opened()
            self._write()
        if connection.unsent_bytes != self._charged:
            self._charge()
        if connection.ended:
            self._calls.close()
            self._leave()
        elif connection.draining and not connection.streams:
            self._transport.close()
        elif self._paused:
            self._check_backlog()

    def _write(self) -> None:
        connection = self._connection
        while data := connection.take():
            self._moved_s = self._around.now_s
            self._transport.write(data)
            if self._paused or not connection.unsent_bytes:
                return
            connection.pump()

    def drain(self) -> None:
        """Take no new calls; leave when those under way have ended."""
        self._connection.drain()
        self.flush()

    def abort(self) -> None:
        """End now."""
        self._transport.abort()

    def sweep(self) -> None:
        """Compare the peer with what it may take its time for."""
        now_s, limits, connection = self._around.now_s, self._around.limits, self._connection
        silent_s = now_s - self._heard_s
        stalled = self._paused or connection.unsent_bytes or self._transport.is_closing()
        if stalled and now_s - self._moved_s >= limits.stall_s:
            self.abort()
        elif not connection.settled and now_s - self._made_s >= limits.handshake_s:
            connection.close(ErrorCode.SETTINGS_TIMEOUT, "no SETTINGS came")
        elif not connection.streams and now_s - self._used_s >= limits.idle_s:
            connection.drain()
        elif silent_s >= limits.keepalive_s + limits.keepalive_wait_s:
            self.abort()
        elif silent_s >= limits.keepalive_s and not self._asked:
            self._asked = True
            connection.ping()
        self._calls.sweep(now_s, limits.request_s)
        self.flush()

    def _charge(self) -> None:
        """Unsent answers are part of what is held together."""
        unsent = self._connection.unsent_bytes
        self._around.desk.held_bytes += unsent - self._charged
        self._charged = unsent

    def _leave(self) -> None:
        if self._transport.get_write_buffer_size() > CLOSE_BYTES:
            self.abort()
        else:
            self._transport.close()

    def _check_backlog(self) -> None:
        """Data waited until there was room: below the mark there may be twice ``max_write_bytes`` more. Above that
        are answers to control frames of a peer that reads none of them."""
        most = 3 * self._around.limits.max_write_bytes + self._around.http2.max_control_bytes
        if self._transport.get_write_buffer_size() > most:
            self.abort()
