"""The service for devices: metadata, manifests, pieces, reports, and the way down without a broker.

Rules kept here: nothing is trusted that a device sends, and nothing is served that a digest does
not name; a report is acknowledged after its commit; whoever watches gets the newest pack and never
a queue of old ones; who may call at all is asked of the gate, first.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from fleet.api.gate import Gate, LoopbackGate, abort
from fleet.api.services import Services
from fleet.errors import FleetError, ServerError
from fleet.messaging.feed import PackFeed
from fleet.registry.presence import Way
from protos import device_pb2, device_pb2_grpc, report_pb2, topics

__all__ = ["DeviceLimits", "DeviceService"]

_LOG = logging.getLogger(__name__)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What devices may ask of the service."""

    requests: int = 5000  # at once, watching devices included
    pieces: int = 8192  # in one request
    chunk_bytes: int = 64 * 1024
    message_bytes: int = 1024 * 1024  # one request; a report is smaller still
    keep_alive_s: float = 30.0  # a watching device that does not answer is gone after twice that
    stop_grace_s: float = 2.0


class DeviceService(device_pb2_grpc.DeviceServiceServicer):
    """The handlers."""

    def __init__(
        self, services: Services, limits: DeviceLimits | None = None, gate: Gate | None = None
    ) -> None:
        self._services = services
        self._limits = limits or DeviceLimits()
        self._gate = gate or LoopbackGate()
        self.watching = 0

    async def Hello(  # noqa: N802
        self, request: device_pb2.HelloRequest, context: Any
    ) -> device_pb2.HelloReply:
        """The pack and the time."""
        await self._gate.admit(context, request.device_id)
        return device_pb2.HelloReply(
            fleet=self._services.fleet,
            pack=self._services.feed.pack,
            server_unix_ms=int(self._services.now_s() * 1000),
        )

    async def GetMetadata(  # noqa: N802
        self, request: device_pb2.MetadataRequest, context: Any
    ) -> device_pb2.MetadataReply:
        """One metadata file."""
        await self._gate.admit(context, None)
        content = await _off_loop(context, self._services.repository.metadata, request.name)
        if content is None:
            await abort(context, "NOT_FOUND", f"no metadata file {request.name[:80]!r}")
        return device_pb2.MetadataReply(content=content)

    async def GetTarget(  # noqa: N802
        self, request: device_pb2.TargetRequest, context: Any
    ) -> device_pb2.TargetReply:
        """One manifest."""
        await self._gate.admit(context, None)
        read = self._services.repository.target
        content = await _off_loop(context, read, request.path, request.sha256)
        if content is None:
            await abort(
                context, "NOT_FOUND",
                f"no target {request.path[:200]!r} with digest {request.sha256[:64]!r}",
            )  # fmt: skip
        return device_pb2.TargetReply(content=content)

    async def FetchPieces(  # noqa: N802
        self, request: device_pb2.PieceRequest, context: Any
    ) -> AsyncIterator[device_pb2.PieceChunk]:
        """Pieces in the order asked for, each from its offset."""
        with self._gate.stream(request.device_id) as closed:
            await self._gate.admit(context, request.device_id)
            if len(request.pieces) > self._limits.pieces:
                await abort(
                    context, "INVALID_ARGUMENT",
                    f"{len(request.pieces)} pieces asked for, {self._limits.pieces} are the most",
                )  # fmt: skip
            for wanted in request.pieces:
                data = await self._piece(wanted, context)
                for offset in range(wanted.offset, len(data), self._limits.chunk_bytes):
                    if closed.is_set():
                        await _end(context)
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
            await abort(context, "INVALID_ARGUMENT", f"a batch of {request.ByteSize()} bytes")
        if not request.reports:
            await self._gate.admit(context, None)
            return report_pb2.ReportAck()
        device_id = request.reports[0].device_id
        await self._gate.admit(context, device_id)
        try:
            return await self._services.ingest.submit(device_id, request)
        except ServerError as error:
            await abort(context, "UNAVAILABLE", f"not stored, send it again: {error}")

    async def Watch(  # noqa: N802
        self, request: device_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[device_pb2.Downlink]:
        """The pack now and at each change, for as long as the device listens."""
        device_id = request.device_id
        with self._gate.stream(device_id) as closed:
            await self._gate.admit(context, device_id)
            self.watching += 1
            try:
                await self._present(device_id, True)
                version = 0
                while True:
                    version, pack = await _newer(self._services.feed, version, closed, context)
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
            await abort(context, "INVALID_ARGUMENT", f"{wanted.sha256[:80]!r} is no sha256 digest")
        data = await _off_loop(context, self._services.artifacts.get, wanted.sha256)
        if data is None:
            await abort(context, "NOT_FOUND", f"no piece {wanted.sha256}")
        if wanted.offset > len(data):
            await abort(
                context, "OUT_OF_RANGE",
                f"piece {wanted.sha256} has {len(data)} bytes, offset {wanted.offset} is behind",
            )  # fmt: skip
        found: bytes = data
        return found


_BACKGROUND: Final[set[asyncio.Future[None]]] = set()  # the loop itself keeps only weak references


async def _off_loop(context: Any, read: Any, *arguments: str) -> Any:
    try:
        return await asyncio.to_thread(read, *arguments)
    except FleetError as error:
        _LOG.error("a device's request failed: %s", error)
        await abort(context, "INTERNAL", str(error))


async def _newer(
    feed: PackFeed, version: int, closed: asyncio.Event, context: Any
) -> tuple[int, bytes]:
    """The newest pack; ends the call when its device may not speak any more."""
    newer = asyncio.ensure_future(feed.newer(version))
    ended = asyncio.ensure_future(closed.wait())
    try:
        await asyncio.wait({newer, ended}, return_when=asyncio.FIRST_COMPLETED)
        if closed.is_set():
            await _end(context)
        return newer.result()
    finally:
        newer.cancel()
        ended.cancel()


async def _end(context: Any) -> NoReturn:
    await abort(context, "PERMISSION_DENIED", "this device may not speak any more: see its fleet")
