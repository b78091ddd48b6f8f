"""gRPC by grpcio: the fallback, ``[serving] grpc_front = "grpcio"``.

Rules kept here:

- Methods and codes are ``agent.serving.service``'s and ``agent.serving.status``'s; here is only their carriage.
- Streams have threads of their own, a bounded number: an idle stream takes none from single requests.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import grpc

from agent.serving.errors import MalformedMessageError, OverloadError
from agent.serving.listen import claim_unix, private_to_group, split_address
from agent.serving.service import (
    MAX_STREAMS,
    InferenceService,
    Kind,
    Method,
    streamed,
    streamed_failure,
)
from agent.serving.status import status_of

__all__ = ["GrpcioFront", "GrpcioLimits"]

_CODES: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


class _Event(Protocol):
    def wait(self) -> object: ...


@dataclass(frozen=True, slots=True)
class GrpcioLimits:
    """Bounds of this front end."""

    workers: int
    """Threads that answer."""
    max_requests: int
    """Under way or waiting for a thread; more are answered RESOURCE_EXHAUSTED at once."""
    max_message_bytes: int
    """Of one request or answer."""


class GrpcioFront:
    """The server, bound to its places and not started once it is made."""

    def __init__(
        self, service: InferenceService, listen: str, unix_path: str, limits: GrpcioLimits
    ) -> None:
        """``unix_path``: a unix socket as well; "" for none.

        Raises:
            ConfigError: not on the loopback. RuntimeError: a place cannot be had. ValueError: the port is no number.
        """
        self._service = service
        self._streams = threading.BoundedSemaphore(MAX_STREAMS)
        self._stream_threads = ThreadPoolExecutor(MAX_STREAMS + 1, thread_name_prefix="stream")
        self._stopped: _Event | None = None
        self._server = grpc.server(
            ThreadPoolExecutor(limits.workers, thread_name_prefix="infer"),
            handlers=(_Handlers(self._handlers()),),
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.max_send_message_length", limits.max_message_bytes),
            ),
            maximum_concurrent_rpcs=limits.max_requests,
        )
        self.port = self._bind(listen, unix_path)

    def start(self) -> None:
        """Answer from now on."""
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Take no more requests and let those under way end, for ``grace_s`` at most; ``wait`` waits for that."""
        self._stopped = self._server.stop(grace_s)

    def wait(self) -> None:
        """Return once ``stop`` is done."""
        if self._stopped is not None:
            self._stopped.wait()

    def _bind(self, listen: str, unix_path: str) -> int:
        host, number = split_address(listen, "[serving] listen")
        try:
            bound = int(self._server.add_insecure_port(f"{host}:{number}"))
        except RuntimeError as error:
            raise RuntimeError(
                f"the port {number} is taken or not allowed; choose another in [serving] listen"
            ) from error
        if unix_path:
            what = "[serving] grpc_unix"
            claim_unix(unix_path, what)  # gRPC itself would take over another server's
            try:
                with private_to_group():
                    self._server.add_insecure_port(f"unix:{unix_path}")
            except RuntimeError as error:
                raise RuntimeError(
                    f"{what} = {unix_path!r} cannot be made. Its folder must exist and be the agent's"
                ) from error
        return bound

    def _handlers(self) -> Mapping[str, Any]:
        return {path: self._handler(method) for path, method in self._service.methods.items()}

    def _handler(self, method: Method) -> Any:
        if method.kind is Kind.STREAM:

            def stream(requests: Any, context: Any) -> Iterator[bytes]:
                return self._stream(requests, context)

            # grpcio's way to give a method threads of its own. Were it ignored, streams would share the
            # others' threads: slower, not wrong.
            stream.experimental_thread_pool = self._stream_threads  # type: ignore[attr-defined]
            return grpc.stream_stream_rpc_method_handler(stream)
        if method.kind is Kind.INFER:
            return grpc.unary_unary_rpc_method_handler(self._infer)
        assert method.answer is not None
        return grpc.unary_unary_rpc_method_handler(_plain(method.answer))

    def _infer(self, message: bytes, context: Any) -> bytes:
        model = ""
        try:
            request = self._service.read(message)
            model = request.model
            return self._service.infer(request, context.time_remaining, waits=True)
        except Exception as error:  # noqa: BLE001 each has its code; unknown ones are logged there
            _abort(context, error, model)

    def _stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        if not self._streams.acquire(blocking=False):
            _abort(context, OverloadError(f"{MAX_STREAMS} streams are open, no more fit"), "")
        try:
            # The iterator raises when the caller goes away: then nobody is left to answer.
            with contextlib.suppress(grpc.RpcError):
                for message in requests:
                    yield self._streamed(message, context)
        finally:
            self._streams.release()

    def _streamed(self, message: bytes, context: Any) -> bytes:
        try:
            request = self._service.read(message)
        except MalformedMessageError as error:
            _abort(context, error, "")
        try:
            return streamed(self._service.infer(request, context.time_remaining, waits=True))
        except Exception as error:  # noqa: BLE001 answered; unknown ones are logged in fault_of
            return streamed_failure(error, request)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Methods by path, with bytes as messages."""

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, None where there is none."""
        return self._handlers.get(handler_call_details.method)


def _plain(answer: Callable[[bytes], bytes]) -> Callable[[bytes, Any], bytes]:
    def call(message: bytes, context: Any) -> bytes:
        try:
            return answer(message)
        except Exception as error:  # noqa: BLE001 as in _infer
            _abort(context, error, "")

    return call


def _abort(context: Any, error: Exception, model: str) -> NoReturn:
    """End the call with the status that the error has."""
    code, text = status_of(error, model)
    context.abort(_CODES[code], text)
    raise AssertionError("abort raises")
