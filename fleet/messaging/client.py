"""An MQTT 5 client that is small enough to hold thousands of in one process.

Rules kept here: everything is bounded (packets in flight, messages waiting, packet size); a message
is acknowledged to the broker only when the program has taken it; a publish at QoS 1 returns when
the broker has acknowledged it; the client never reconnects by itself, it says in ``closed`` why it
ended and the caller decides. The codec (mqtt5) stays behind this module.

While ``messages()`` is not drained, reading from the socket stops once the queue is full. A program
that publishes because of what it received therefore uses one client to receive and another to
publish.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Self, cast

import mqtt5

from fleet.messaging.errors import BrokerError
from fleet.messaging.packets import (
    ClientLimits,
    Message,
    Will,
    packet_size,
    reason_text,
    require_welcome,
    will_of,
)

__all__ = ["ClientLimits", "Message", "MqttClient", "Will"]

_MAX_PACKET_ID: Final = 65535
_FAILED: Final = 0x80  # reason codes from here on say no; the codec's need int() to compare


DEFAULT_LIMITS: Final = ClientLimits()


class MqttClient(asyncio.Protocol):
    """One connection to one broker, made by ``connect``; of no use once ``closed`` is done."""

    __slots__ = (
        "_acks", "_buffer", "_connected", "_heard", "_inflight", "_keep_alive_s", "_limits",
        "_next_id", "_on_message", "_paused", "_pinged", "_queue", "_replies", "_said", "_slots",
        "_timer", "_transport", "_waker", "_writable", "closed", "packet_bytes",
    )  # fmt: skip

    def __init__(self, limits: ClientLimits, on_message: Callable[[Message], None] | None) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[BrokerError | None] = loop.create_future()
        self._connected: asyncio.Future[None] | None = loop.create_future()
        self._limits = limits
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._next_id = 0
        self._inflight = limits.inflight
        self._acks: dict[int, asyncio.Future[None]] = {}
        self._replies: dict[int, asyncio.Future[None]] | None = None
        self._slots: deque[asyncio.Future[None]] | None = None
        self._queue: deque[tuple[Message, int]] | None = None
        self._waker: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._keep_alive_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._said = self._pinged = False
        self.packet_bytes: int | None = None
        """Most bytes of one packet that the broker takes; None: it set no limit."""

    # --- the interface ---

    @classmethod
    async def connect(  # noqa: PLR0913 (what CONNECT carries, by name)
        cls,
        host: str,
        port: int,
        client_id: str,
        *,
        keep_alive_s: int = 60,
        will: Will | None = None,
        clean_start: bool = True,
        on_message: Callable[[Message], None] | None = None,
        limits: ClientLimits = DEFAULT_LIMITS,
        tls: ssl.SSLContext | None = None,
    ) -> Self:
        """Connect, over TLS with ``tls``, and wait for the broker's answer.

        With ``on_message`` every message goes to that function at once, in the event loop;
        without it they wait for ``messages()``.

        Raises:
            BrokerError: the broker cannot be reached, does not answer in time, or refuses.
        """
        loop = asyncio.get_running_loop()
        client = cls(limits, on_message)
        packet = mqtt5.ConnectPacket(
            client_id,
            clean_start=clean_start,
            will=will_of(will),
            keep_alive=keep_alive_s,
            receive_max=min(limits.queued_messages, _MAX_PACKET_ID),
            max_packet_size=limits.max_packet_bytes,
        )
        client._keep_alive_s = float(keep_alive_s)
        try:
            async with asyncio.timeout(limits.connect_timeout_s):
                await loop.create_connection(lambda: client, host, port, ssl=tls)
                client._write(packet.write())
                assert client._connected is not None
                await client._connected
        except TimeoutError as error:
            client._fail("it did not answer in time")
            raise BrokerError(
                f"MQTT broker {host}:{port} did not answer within {limits.connect_timeout_s:g} s"
            ) from error
        except (OSError, BrokerError) as error:
            raise BrokerError(
                f"MQTT broker {host}:{port} cannot be used: {error}. "
                f"Check that it runs and speaks MQTT 5{' over TLS' if tls else ''}."
            ) from error
        except asyncio.CancelledError:
            client._fail("cancelled")
            raise
        client._connected = None
        client._schedule_tick()
        return client

    async def subscribe(self, topic_filter: str) -> None:
        """Subscribe at QoS 1 and wait until the broker has granted it.

        Raises:
            BrokerError: refused, or the connection ended.
        """
        self._require_open()
        packet_id = self._packet_id()
        wanted = mqtt5.TopicFilter(topic_filter, max_qos=mqtt5.QoS.AT_LEAST_ONCE)
        if self._replies is None:
            self._replies = {}
        reply = self._replies[packet_id] = asyncio.get_running_loop().create_future()
        try:
            self._write(mqtt5.SubscribePacket(packet_id, [wanted]).write())
            await reply
        finally:
            self._replies.pop(packet_id, None)

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish; return when the broker has acknowledged it (QoS 1) or when it is sent (QoS 0).

        Raises:
            BrokerError: the broker said no, or the connection ended before its acknowledgement:
                the message may or may not have arrived.
        """
        self._require_open()
        if qos == 0:
            self._write(mqtt5.PublishPacket(topic, payload, retain=retain).write())
            await self._drained()
            return
        await self._slot()
        packet_id = self._packet_id()
        ack = self._acks[packet_id] = asyncio.get_running_loop().create_future()
        try:
            self._write(
                mqtt5.PublishPacket(
                    topic, payload, qos=mqtt5.QoS.AT_LEAST_ONCE, retain=retain, packet_id=packet_id
                ).write()
            )
            await self._drained()
            await ack
        finally:
            if not ack.done():
                ack.cancel()
            # A cancelled publish keeps its packet id until the broker answers: never used twice.
            if not ack.cancelled():
                self._acks.pop(packet_id, None)
                self._release_slot()

    async def messages(self) -> AsyncIterator[Message]:
        """Messages in the order of the broker, until the connection ends.

        Raises:
            BrokerError: the connection ended other than by ``close``.
        """
        while True:
            while self._queue:
                message, packet_id = self._queue.popleft()
                self._resume_reading()
                # Not after its handling: a broker has few messages in flight (Mosquitto 20), and
                # waiting for a disk with each would make that the limit of everything.
                self._acknowledge(packet_id)
                yield message
            if self.closed.done():
                error = self.closed.result()
                if error is not None:
                    raise error
                return
            waker = self._waker = self._waker or asyncio.get_running_loop().create_future()
            await asyncio.shield(waker)

    async def close(self) -> None:
        """Say goodbye (so that no will is sent) and close. Safe to call again."""
        if self._transport is None or self.closed.done():
            return
        self._write(mqtt5.DisconnectPacket().write())
        self._end(None)
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.close_timeout_s):
                await asyncio.shield(self.closed)

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, only of the same form.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._pinged = False
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        try:
            position = self._consume(memoryview(data))
        except ValueError as error:
            self._fail(f"it sent something that is not MQTT 5: {error}")
            return
        if position < len(data):
            self._buffer = data[position:]

    def connection_lost(self, exc: Exception | None) -> None:
        why = f": {exc}" if exc is not None else ""
        self._end(BrokerError(f"the broker closed the connection{why}"))

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    # --- packets in ---

    def _consume(self, data: memoryview) -> int:
        """Handle every whole packet; return how many bytes that was."""
        position = 0
        if self._connected is not None and not self._connected.done():
            require_welcome(data)
        while not self.closed.done():
            size = packet_size(data, position)
            if size is None:
                break
            if size > self._limits.max_packet_bytes:
                raise ValueError(f"a packet of {size} bytes")
            if position + size > len(data):
                break
            packet, used = mqtt5.read(data[position : position + size])
            position += used
            self._handle(packet)
        return position

    def _handle(self, packet: mqtt5.Packet) -> None:
        match packet:
            case mqtt5.PublishPacket():
                self._received(packet)
            case mqtt5.PubAckPacket():
                self._answer(self._acks, packet.packet_id, packet.reason_code)
            case mqtt5.SubAckPacket():
                self._answer(self._replies or {}, packet.packet_id, packet.reason_codes[0])
            case mqtt5.ConnAckPacket():
                self._welcomed(packet)
            case mqtt5.DisconnectPacket():
                text = packet.reason_str or reason_text(packet.reason_code)
                self._fail(f"it ended the connection: {text}")
            case _:
                pass  # PINGRESP was noted as a sign of life; nothing else is for a client

    def _welcomed(self, packet: mqtt5.ConnAckPacket) -> None:
        if self._connected is None or self._connected.done():
            raise ValueError("a second CONNACK")
        if int(packet.reason_code) >= _FAILED:
            self._fail(f"it refused: {reason_text(packet.reason_code)}")
            return
        self._inflight = min(self._inflight, packet.receive_max)
        self.packet_bytes = packet.max_packet_size
        if packet.server_keep_alive is not None:
            self._keep_alive_s = float(packet.server_keep_alive)
        self._connected.set_result(None)

    def _received(self, packet: mqtt5.PublishPacket) -> None:
        message = Message(packet.topic, bytes(packet.payload), packet.retain)
        packet_id = packet.packet_id or 0
        if self._on_message is not None:
            self._on_message(message)
            self._acknowledge(packet_id)
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append((message, packet_id))
        if len(self._queue) >= self._limits.queued_messages and not self._paused:
            assert self._transport is not None
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _acknowledge(self, packet_id: int) -> None:
        if packet_id and not self.closed.done():
            self._write(mqtt5.PubAckPacket(packet_id).write())

    def _answer(
        self, waiting: dict[int, asyncio.Future[None]], packet_id: int, reason: int
    ) -> None:
        future = waiting.get(packet_id)
        if future is None:
            return  # an answer to what we no longer wait for: harmless
        if future.cancelled():
            waiting.pop(packet_id)
            if waiting is self._acks:
                self._release_slot()
        elif int(reason) >= _FAILED:
            future.set_exception(BrokerError(f"the broker refused it: {reason_text(reason)}"))
        else:
            future.set_result(None)

    # --- limits ---

    async def _slot(self) -> None:
        while len(self._acks) >= self._inflight:
            if self._slots is None:
                self._slots = deque()
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._slots.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done():
                    self._release_slot()  # it was our turn: pass it on
                raise
            self._require_open()

    def _release_slot(self) -> None:
        while self._slots:
            turn = self._slots.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def _drained(self) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)
            self._require_open()

    def _resume_reading(self) -> None:
        if self._paused and len(self._queue or ()) <= self._limits.queued_messages // 2:
            self._paused = False
            self._heard = True  # silence while we did not listen says nothing about the broker
            if self._transport is not None and not self.closed.done():
                self._transport.resume_reading()

    def _packet_id(self) -> int:
        while True:
            self._next_id = self._next_id % _MAX_PACKET_ID + 1
            if self._next_id not in self._acks and self._next_id not in (self._replies or ()):
                return self._next_id

    # --- life and death ---

    def _schedule_tick(self) -> None:
        if self._keep_alive_s > 0 and not self.closed.done():
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._keep_alive_s * 0.5, self._tick)

    def _tick(self) -> None:
        """Every half keep-alive: a ping if a side was silent, the end if the last had no answer."""
        if self._pinged and not self._paused:
            self._fail("it no longer answers")
            return
        if not (self._heard and self._said):
            self._pinged = True
            self._write(mqtt5.PingReqPacket().write())
        self._heard = self._said = False
        self._schedule_tick()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._said = True
            self._transport.write(data)

    def _require_open(self) -> None:
        if self.closed.done():
            raise self.closed.result() or BrokerError("the connection to the broker was closed")

    def _wake(self) -> None:
        if self._waker is not None:
            if not self._waker.done():
                self._waker.set_result(None)
            self._waker = None

    def _fail(self, why: str) -> None:
        self._end(BrokerError(why))
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: BrokerError | None) -> None:
        if self.closed.done():
            return
        self.closed.set_result(error)
        if self._timer is not None:
            self._timer.cancel()
        reason = error or BrokerError("the connection to the broker was closed")
        waiting = [*self._acks.values(), *(self._replies or {}).values()]
        if self._connected is not None:
            waiting.append(self._connected)
        for future in waiting:
            if not future.done():
                future.set_exception(reason)
                future.exception()  # a waiter that was cancelled must not leave a complaint behind
        for turn in self._slots or ():
            if not turn.done():
                turn.set_result(None)  # they wake up, see that it is closed, and say so
        self.resume_writing()
        self._wake()
