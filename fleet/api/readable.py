"""Requests that are no messages, refused like everything else that a caller gets wrong.

Rules kept here: what gRPC cannot read it answers as a failure of ours, with a trace in the log for each; strangers must
neither be told that nor fill the log with it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from fleet.api.gate import abort

__all__ = ["ReadableRequests"]


class ReadableRequests(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Reads requests in gRPC's stead; the handlers are none the wiser."""

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """grpc.aio's."""
        found = self._handlers.get(handler_call_details.method)
        if found is not None:
            return found
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler
        made = self._handlers[handler_call_details.method] = _reading(handler)
        return made


def _reading(handler: Any) -> Any:
    """The same method for requests that are bytes yet."""

    async def unary(raw: bytes, context: Any) -> Any:
        return await handler.unary_unary(await _read(handler, raw, context), context)

    async def stream(raw: bytes, context: Any) -> AsyncIterator[Any]:
        request = await _read(handler, raw, context)
        async for answer in handler.unary_stream(request, context):
            yield answer

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(
            stream, response_serializer=handler.response_serializer
        )
    return grpc.unary_unary_rpc_method_handler(
        unary, response_serializer=handler.response_serializer
    )


async def _read(handler: Any, raw: bytes, context: Any) -> Any:
    try:
        return handler.request_deserializer(raw)
    except DecodeError:
        await abort(context, "INVALID_ARGUMENT", "the request is not the message that it should be")
