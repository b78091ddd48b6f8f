"""The service for devices: metadata, manifests, pieces, reports, and the way down without a broker.

Rules kept here: nothing is trusted that a device sends, and nothing is served that a digest does
not name; a report is acknowledged after its commit; whoever watches gets the newest pack and never
a queue of old ones.
"""

import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc

from fleet.api.services import Services
from fleet.config import Listen
from fleet.errors import ConfigError, FleetError, ServerError
from fleet.monitor.reports import DEVICE_ID
from fleet.registry.presence import Way
from protos import device_pb2, device_pb2_grpc, report_pb2, topics

__all__ = ["DeviceLimits", "DeviceServer", "DeviceService"]

_LOG = logging.getLogger(__name__)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_HEADROOM_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What devices may ask of the service."""

    requests: int = 5000  # at once, watching devices included
    pieces: int = 8192  # in one request
    chunk_bytes: int = 64 * 1024
    message_bytes: int = 1024 * 1024  # one request; a report is smaller still
    keep_alive_s: float = 30.0  # a watching device that does not answer is gone after twice that
    stop_grace_s: float = 2.0


def _require_free(listen: Listen) -> None:
    """Raises ConfigError when nobody can listen there."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        socket.create_server((listen.host, listen.port), family=family).close()
    except OSError as error:
        raise _cannot_listen(listen, os.strerror(error.errno or 0)) from error


def _cannot_listen(listen: Listen, reason: str) -> ConfigError:
    return ConfigError(
        f"cannot listen on {listen} for devices: {reason}. "
        "Stop what does, or set [grpc] listen to another port"
    )


class DeviceService(device_pb2_grpc.DeviceServiceServicer):
    """The handlers."""

    def __init__(self, services: Services, limits: DeviceLimits | None = None) -> None:
        self._services = services
        self._limits = limits or DeviceLimits()
        self.watching = 0

    async def Hello(  # noqa: N802
        self, request: device_pb2.HelloRequest, context: Any
    ) -> device_pb2.HelloReply:
        """The pack and the time."""
        await _require_device(request.device_id, context)
        return device_pb2.HelloReply(
            fleet=self._services.fleet,
            pack=self._services.feed.pack,
            server_unix_ms=int(self._services.now_s() * 1000),
        )

    async def GetMetadata(  # noqa: N802
        self, request: device_pb2.MetadataRequest, context: Any
    ) -> device_pb2.MetadataReply:
        """One metadata file."""
        content = await _off_loop(context, self._services.repository.metadata, request.name)
        if content is None:
            await _abort(context, "NOT_FOUND", f"no metadata file {request.name[:80]!r}")
        return device_pb2.MetadataReply(content=content)

    async def GetTarget(  # noqa: N802
        self, request: device_pb2.TargetRequest, context: Any
    ) -> device_pb2.TargetReply:
        """One manifest."""
        read = self._services.repository.target
        content = await _off_loop(context, read, request.path, request.sha256)
        if content is None:
            await _abort(
                context, "NOT_FOUND",
                f"no target {request.path[:200]!r} with digest {request.sha256[:64]!r}",
            )  # fmt: skip
        return device_pb2.TargetReply(content=content)

    async def FetchPieces(  # noqa: N802
        self, request: device_pb2.PieceRequest, context: Any
    ) -> AsyncIterator[device_pb2.PieceChunk]:
        """Pieces in the order asked for, each from its offset."""
        await _require_device(request.device_id, context)
        if len(request.pieces) > self._limits.pieces:
            await _abort(
                context, "INVALID_ARGUMENT",
                f"{len(request.pieces)} pieces asked for, {self._limits.pieces} are the most",
            )  # fmt: skip
        for wanted in request.pieces:
            data = await self._piece(wanted, context)
            for offset in range(wanted.offset, len(data), self._limits.chunk_bytes):
                yield device_pb2.PieceChunk(
                    sha256=wanted.sha256,
                    offset=offset,
                    data=data[offset : offset + self._limits.chunk_bytes],
                )

    async def Report(  # noqa: N802
        self, request: report_pb2.ReportBatch, context: Any
    ) -> report_pb2.ReportAck:
        """Store reports; the answer comes after the commit."""
        if request.ByteSize() > topics.MAX_PAYLOAD_BYTES:
            await _abort(context, "INVALID_ARGUMENT", f"a batch of {request.ByteSize()} bytes")
        if not request.reports:
            return report_pb2.ReportAck()
        device_id = request.reports[0].device_id
        await _require_device(device_id, context)
        try:
            return await self._services.ingest.submit(device_id, request)
        except ServerError as error:
            await _abort(context, "UNAVAILABLE", f"not stored, send it again: {error}")

    async def Watch(  # noqa: N802
        self, request: device_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[device_pb2.Downlink]:
        """The pack now and at each change, for as long as the device listens."""
        device_id = request.device_id
        await _require_device(device_id, context)
        self.watching += 1
        try:
            await self._present(device_id, True)
            version = 0
            while True:
                version, pack = await self._services.feed.newer(version)
                yield device_pb2.Downlink(pack=pack)
        finally:
            self.watching -= 1
            # The call is over and may be cancelled at any await: the note is made by a task of its own.
            gone = asyncio.ensure_future(self._present(device_id, False))
            _BACKGROUND.add(gone)
            gone.add_done_callback(_BACKGROUND.discard)

    async def _present(self, device_id: str, up: bool) -> None:
        try:
            await self._services.ingest.present(device_id, Way.GRPC, up)
        except ServerError as error:
            _LOG.warning("%s: whether it is connected was not stored: %s", device_id, error)

    async def _piece(self, wanted: device_pb2.PieceRange, context: Any) -> bytes:
        if not _DIGEST.fullmatch(wanted.sha256):
            await _abort(context, "INVALID_ARGUMENT", f"{wanted.sha256[:80]!r} is no sha256 digest")
        data = await _off_loop(context, self._services.artifacts.get, wanted.sha256)
        if data is None:
            await _abort(context, "NOT_FOUND", f"no piece {wanted.sha256}")
        if wanted.offset > len(data):
            await _abort(
                context, "OUT_OF_RANGE",
                f"piece {wanted.sha256} has {len(data)} bytes, offset {wanted.offset} is behind",
            )  # fmt: skip
        found: bytes = data
        return found


_BACKGROUND: Final[set[asyncio.Future[None]]] = set()  # the loop itself keeps only weak references


class DeviceServer:
    """The service behind a port on loopback."""

    def __init__(
        self, services: Services, listen: Listen, limits: DeviceLimits | None = None
    ) -> None:
        self._limits = limits or DeviceLimits()
        self._listen = listen
        self.service = DeviceService(services, self._limits)
        self._server: Any = None

    async def start(self) -> Listen:
        """Listen; the address with the port that was taken.

        Raises:
            ConfigError: the port is in use.
        """
        keep_alive_ms = int(self._limits.keep_alive_s * 1000)
        options = [
            (
                "grpc.so_reuseport",
                0,
            ),  # a second fleet manager on the same port must fail, not share
            ("grpc.max_receive_message_length", self._limits.message_bytes + _HEADROOM_BYTES),
            ("grpc.keepalive_time_ms", keep_alive_ms),
            ("grpc.keepalive_timeout_ms", keep_alive_ms),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        self._server = grpc.aio.server(
            options=options, maximum_concurrent_rpcs=self._limits.requests
        )
        add_service: Any = device_pb2_grpc.add_DeviceServiceServicer_to_server
        add_service(self.service, self._server)
        _require_free(self._listen)  # gRPC would log what fails in its own words, and not say why
        try:
            port = self._server.add_insecure_port(str(self._listen))
        except RuntimeError as error:
            raise _cannot_listen(self._listen, str(error)) from error
        await self._server.start()
        return Listen(self._listen.host, port)

    async def stop(self) -> None:
        """Let running calls end for a moment, then end them."""
        if self._server is not None:
            await self._server.stop(self._limits.stop_grace_s)


async def _off_loop(context: Any, read: Any, *arguments: str) -> Any:
    try:
        return await asyncio.to_thread(read, *arguments)
    except FleetError as error:
        _LOG.error("a device's request failed: %s", error)
        await _abort(context, "INTERNAL", str(error))


async def _require_device(device_id: str, context: Any) -> None:
    if not DEVICE_ID.fullmatch(device_id):
        await _abort(context, "INVALID_ARGUMENT", f"{device_id[:80]!r} is no device id")


async def _abort(context: Any, code: str, text: str) -> NoReturn:
    await context.abort(getattr(grpc.StatusCode, code), text)
    raise AssertionError("abort raises")
