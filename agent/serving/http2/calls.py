"""The calls of one connection: from messages to answers.

Rules kept here:

- A small model runs on the event loop, where the measured latency says so; everything else in the pool. While a model
  makes room for its next version its calls wait without a thread.
- A call that its caller gave up (reset, deadline, connection lost) begins no run any more.
- A streaming call has one request under way; the next is not read before the answer to the last one is sent, and its
  window stays shut meanwhile.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from agent.runtime.errors import NotReadyError
from agent.serving.errors import CallerGoneError, OverloadError
from agent.serving.http2.connection import Connection
from agent.serving.http2.desk import Desk, Ran
from agent.serving.http2.errors import CallRefusedError
from agent.serving.http2.events import DataCame, Event, RequestCame
from agent.serving.http2.grpc_messages import (
    ANSWER_HEAD,
    OK_TRAILERS,
    CallHead,
    MessageReader,
    prefixed,
    trailers,
    whole_message,
)
from agent.serving.infer_wire import read_wire
from agent.serving.service import InferRequest, Kind, Method, streamed, streamed_failure
from agent.serving.status import Code, status_of

__all__ = ["Calls"]

Buffer = bytes | bytearray

HELD_TRIES: Final = 4
LARGE_ANSWER_BYTES: Final = 1 << 16
"""From here on an answer needs room among all that is held."""


class Call:
    """One call. ``owed`` is what came and the peer's window does not know yet."""

    __slots__ = (
        "answering", "busy", "deadline_s", "desk", "ended", "gone", "heard_s", "held_bytes", "looping", "method",
        "owed", "reader", "stream_id", "task", "timer", "tries",
    )  # fmt: skip

    def __init__(self, stream_id: int, method: Method, desk: Desk, timeout_s: float | None) -> None:
        self.stream_id = stream_id
        self.method = method
        self.desk = desk
        self.heard_s = time.monotonic()
        self.deadline_s = None if timeout_s is None else self.heard_s + timeout_s
        self.reader: MessageReader | None = None
        self.held_bytes = 0
        self.owed = 0
        self.tries = 0
        self.ended = self.gone = self.busy = self.looping = self.answering = False
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    def remaining_s(self) -> float | None:
        """How long the caller waits: nothing any more when it has gone. Asked by the run's thread, too."""
        if self.gone:
            return 0.0
        return None if self.deadline_s is None else self.deadline_s - time.monotonic()

    def take(self, size: int) -> None:
        """As ``Desk.take``, remembered until the call ends."""
        self.desk.take(size)
        self.held_bytes += size


class Calls:
    """Of one connection. ``flush`` sends what the connection has to send."""

    def __init__(
        self, desk: Desk, connection: Connection[CallHead], flush: Callable[[], None]
    ) -> None:
        self._desk = desk
        self._connection = connection
        self._flush = flush
        self._calls: dict[int, Call] = {}
        self._streams: dict[int, Call] = {}
        self._events: deque[Event] = deque()

    def take(self, events: Sequence[Event]) -> None:
        """Deal with what came; what is too much for one turn, in the next."""
        if self._events or len(events) > 2 * self._desk.limits.max_turn:
            if not self._events:
                self._desk.loop.call_soon(self._turn)
            self._events += events
            return
        for event in events:
            self._take(event)

    def windows_opened(self) -> None:
        """Streaming calls may go on once their last answer is sent."""
        for call in list(self._streams.values()):
            self._go_on(call)

    def sweep(self, now_s: float, request_s: float) -> None:
        """Give up the calls whose requests do not come."""
        for call in list(self._calls.values()):
            if call.ended:
                continue
            if call.deadline_s is not None and now_s >= call.deadline_s:
                self._expired(call)
            elif call.method.kind is not Kind.STREAM and now_s - call.heard_s >= request_s:
                self._end(call, Code.DEADLINE_EXCEEDED, "the rest of the request did not come")

    def close(self) -> None:
        """The connection is gone, and all callers with it."""
        self._events.clear()
        for call in list(self._calls.values()):
            self._forget(call)

    # --- what came --------------------------------------------------------------------------------

    def _turn(self) -> None:
        for _ in range(2 * self._desk.limits.max_turn):
            if not self._events:
                break
            self._take(self._events.popleft())
        if self._events:
            self._desk.loop.call_soon(self._turn)
        self._flush()

    def _take(self, event: Event) -> None:
        if type(event) is DataCame:
            call = self._calls.get(event.stream_id)
            if call is not None:
                self._data(call, event.data, event.ended)
        elif type(event) is RequestCame:
            self._open(event)
        else:
            call = self._calls.get(event.stream_id)
            if call is not None:
                self._forget(call)

    def _open(self, event: RequestCame) -> None:
        head, stream_id, desk = event.head, event.stream_id, self._desk
        assert isinstance(head, CallHead)
        if head.method is None:
            self._connection.send(stream_id, b"", (), head.refusal)
            return
        streaming = head.method.kind is Kind.STREAM
        try:
            desk.check_room()
            if streaming:
                desk.check_stream_room()
        except OverloadError as error:
            self._refuse(stream_id, *status_of(error, ""))
            return
        call = Call(stream_id, head.method, desk, head.timeout_s)
        desk.requests += 1
        self._calls[stream_id] = call
        if head.encoding:
            call.reader = self._reader(call, head.encoding)
        if streaming:
            desk.streams += 1
            self._streams[stream_id] = call
            self._arm(call)
        if event.ended:
            self._data(call, b"", ended=True)

    def _data(self, call: Call, data: bytes, ended: bool) -> None:
        call.ended = ended
        if ended and call.reader is None and call.method.kind is not Kind.STREAM:
            message = whole_message(data)
            if message is not None and len(message) <= self._desk.limits.max_message_bytes:
                self._begin(call, message)
                return
        if call.reader is None:
            call.reader = self._reader(call, "")
        try:
            call.reader.feed(data)
            call.owed += len(data)
            if call.method.kind is Kind.STREAM:
                self._go_on(call)
            else:
                self._collect(call, call.reader)
        except CallRefusedError as error:
            self._end(call, error.code, str(error))

    def _collect(self, call: Call, reader: MessageReader) -> None:
        """The one message of a call that is not whole yet, or is now. Raises CallRefusedError."""
        if not call.ended:
            reader.is_whole()  # refuses what is too large before more of it comes
            call.heard_s = time.monotonic()
            self._connection.consumed(call.stream_id, call.owed)
            call.owed = 0
            return
        message = reader.next()
        if message is None or reader.kept_bytes:
            raise CallRefusedError(
                Code.INTERNAL,
                f"{call.method.name} takes one whole message, and something else came",
            )
        self._begin(call, message, held=True)

    def _reader(self, call: Call, encoding: str) -> MessageReader:
        return MessageReader(self._desk.limits.max_message_bytes, encoding, call.take)

    # --- answers ----------------------------------------------------------------------------------

    def _begin(self, call: Call, message: Buffer, *, held: bool = False) -> None:
        """Answer one message. ``held``: its bytes are counted already."""
        answer = call.method.answer
        if answer is None:
            self._infer(call, message, held=held)
            return
        try:
            self._answer(call, answer(message))
        except Exception as error:  # noqa: BLE001 each has its code; unknown ones are logged there
            self._end(call, *status_of(error, ""))

    def _infer(self, call: Call, message: Buffer, *, held: bool) -> None:
        size, desk = len(message), self._desk
        try:
            if not held:
                call.take(size)
            request: InferRequest | None = read_wire(message)
            if request is None:
                if size > desk.limits.max_read_inline_bytes:
                    self._arm(call)
                    read = partial(desk.service.read_unusual, message)
                    desk.submit(read, partial(self._was_read, call, size))
                    return
                request = desk.service.read_unusual(message)
        except CallRefusedError as error:
            self._end(call, error.code, str(error))
        except Exception as error:  # noqa: BLE001 as in _begin
            self._end(call, *status_of(error, ""))
        else:
            self._place(call, request, size)

    def _was_read(self, call: Call, size: int, read: InferRequest | Exception) -> None:
        if not call.gone:
            if isinstance(read, Exception):
                self._end(call, *status_of(read, ""))
            else:
                self._place(call, read, size)
            self._flush()

    def _place(self, call: Call, request: InferRequest, size: int) -> None:
        """Run on the loop or in the pool, as measured."""
        desk = self._desk
        alone = desk.company.alone(id(self), desk.requests - 1)
        if desk.placement.inline(request.model, request.version, size, alone=alone):
            self._ran(call, request, size, desk.run_inline(request, call.remaining_s, size))
            return
        self._arm(call)
        desk.submit(
            partial(desk.run, request, call.remaining_s),
            partial(self._ran_in_pool, call, request, size),
        )

    def _ran_in_pool(self, call: Call, request: InferRequest, size: int, ran: Ran) -> None:
        if isinstance(ran.answer, bytes):
            key = (request.model, request.version)
            self._desk.placement.record(
                key, request.servable_sha256, size, ran.took_s, inline=False
            )
        self._ran(call, request, size, ran.answer)
        self._flush()

    def _ran(self, call: Call, request: InferRequest, size: int, answer: bytes | Exception) -> None:
        if isinstance(answer, NotReadyError) and answer.held and not call.gone:
            self._arm(call)
            call.task = self._desk.loop.create_task(self._wait_held(call, request, size))
            return
        if call.gone:
            return
        if call.method.kind is Kind.STREAM:
            self._stream_answer(call, request, size, answer)
        elif isinstance(answer, bytes):
            self._answer(call, answer)
        else:
            self._end(call, *status_of(answer, request.model))

    async def _wait_held(self, call: Call, request: InferRequest, size: int) -> None:
        """Until the model's next version answers, a bounded time and a bounded number of times."""
        call.tries += 1
        error: Exception
        try:
            if call.tries > HELD_TRIES:
                raise OverloadError(
                    f"model {request.model!r} is being replaced again and again; try again later"
                )
            async with asyncio.timeout(call.remaining_s()):
                await self._desk.service.wait_held(request.model)
        except TimeoutError:
            error = CallerGoneError("the caller's time is over")
        except Exception as caught:  # noqa: BLE001 as in _begin
            error = caught
        else:
            self._place(call, request, size)
            self._flush()
            return
        self._ran(call, request, size, error)
        self._flush()

    def _answer(self, call: Call, answer: bytes) -> None:
        """The whole answer of a call that has one."""
        if self._has_room(call, answer):
            stream_id = call.stream_id
            self._forget(call)
            self._connection.send(
                stream_id, ANSWER_HEAD, (prefixed(len(answer)), answer), OK_TRAILERS
            )

    def _has_room(self, call: Call, answer: bytes) -> bool:
        """Whether the answer can be sent; the call ends when not."""
        limits = self._desk.limits
        if len(answer) < LARGE_ANSWER_BYTES:
            return True
        if len(answer) > limits.max_message_bytes:
            text = (
                f"the answer has {len(answer)} bytes, at most {limits.max_message_bytes} are sent"
            )
        elif self._desk.held_bytes + len(answer) > limits.max_bytes_together:
            text = f"{self._desk.held_bytes} bytes are under way, the answer does not fit; try again later"
        else:
            return True
        self._end(call, Code.RESOURCE_EXHAUSTED, text)
        return False

    def _end(self, call: Call, code: Code, text: str) -> None:
        """End a call with a status."""
        head = b"" if call.answering else ANSWER_HEAD
        self._forget(call)
        self._connection.send(call.stream_id, b"", (), head + trailers(code, text))

    def _refuse(self, stream_id: int, code: Code, text: str) -> None:
        self._connection.send(stream_id, b"", (), ANSWER_HEAD + trailers(code, text))

    # --- streaming calls --------------------------------------------------------------------------

    def _go_on(self, call: Call) -> None:
        """Take the next requests of a streaming call, as long as each is answered at once."""
        if call.looping:
            return
        call.looping = True
        try:
            for _ in range(self._desk.limits.max_turn):
                if not self._next(call):
                    return
            self._desk.loop.call_soon(self._go_on_later, call)
        except CallRefusedError as error:
            self._end(call, error.code, str(error))
        finally:
            call.looping = False

    def _go_on_later(self, call: Call) -> None:
        self._go_on(call)
        self._flush()

    def _next(self, call: Call) -> bool:
        """One more request; False: there is none, or not now. Raises CallRefusedError."""
        if call.gone or call.busy or self._connection.unsent_of(call.stream_id):
            return False
        message = call.reader.next() if call.reader is not None else None
        if call.owed and (call.reader is None or not call.reader.is_whole()):
            self._connection.consumed(call.stream_id, call.owed)
            call.owed = 0
        if message is not None:
            call.busy = True
            call.tries = 0
            self._infer(call, message, held=True)
            return True
        if call.ended:
            if call.reader is not None and call.reader.kept_bytes:
                raise CallRefusedError(Code.INTERNAL, "the stream ended within a message")
            head = b"" if call.answering else ANSWER_HEAD
            self._forget(call)
            self._connection.send(call.stream_id, head, (), OK_TRAILERS)
        return False

    def _stream_answer(
        self, call: Call, request: InferRequest, size: int, answer: bytes | Exception
    ) -> None:
        data = streamed(answer) if isinstance(answer, bytes) else streamed_failure(answer, request)
        if not self._has_room(call, data):
            return
        call.take(-size)
        head = b"" if call.answering else ANSWER_HEAD
        call.answering = True
        self._connection.send(call.stream_id, head, (prefixed(len(data)), data))
        call.busy = False
        self._go_on(call)

    # --- ends -------------------------------------------------------------------------------------

    def _arm(self, call: Call) -> None:
        """End the call at its deadline even while its run goes on, or waits for a thread."""
        if call.timer is None and call.deadline_s is not None:
            left_s = max(0.0, call.deadline_s - time.monotonic())
            call.timer = self._desk.loop.call_later(left_s, self._expired, call)

    def _expired(self, call: Call) -> None:
        if not call.gone:
            self._end(call, Code.DEADLINE_EXCEEDED, "the caller's time is over")
            self._flush()

    def _forget(self, call: Call) -> None:
        """The call is answered, or nobody waits for its answer."""
        if call.gone:
            return
        call.gone = True
        del self._calls[call.stream_id]
        desk = self._desk
        desk.requests -= 1
        desk.held_bytes -= call.held_bytes
        call.held_bytes = 0
        if self._streams.pop(call.stream_id, None) is not None:
            desk.streams -= 1
        if call.timer is not None:
            call.timer.cancel()
        if call.task is not None and call.task is not asyncio.current_task(desk.loop):
            call.task.cancel()
