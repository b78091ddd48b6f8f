"""The gRPC side of a simulated device: a connection of its own, opened when it is needed and closed after.

Rules: what is fetched is read by the agent's own piece source; a slow link is read slowly, so that
the server feels it; a broken stream breaks between two chunks, where a real one may.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio

from agent.adapters.grpc_link import GrpcPieceSource
from agent.errors import LinkError
from agent.ports import PieceChunk, PieceRange
from protos import device_pb2, device_pb2_grpc
from simulator.chance import rng
from simulator.wire import Wire

__all__ = ["DeviceMetadataSource", "DevicePieceSource"]


class DeviceMetadataSource:
    """``agent.ports.MetadataSource``: a connection a call. Blocking: worker threads only."""

    __slots__ = ("_wire",)

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def get_metadata(self, name: str) -> bytes | None:
        return self._call("GetMetadata", device_pb2.MetadataRequest(name=name), name)

    def get_target(self, path: str, sha256: str) -> bytes | None:
        return self._call("GetTarget", device_pb2.TargetRequest(path=path, sha256=sha256), path)

    def _call(
        self, call: str, request: device_pb2.MetadataRequest | device_pb2.TargetRequest, what: str
    ) -> bytes | None:
        address = str(self._wire.grpc)
        self._wire.traffic.calls += 1
        with grpc.insecure_channel(address, options=self._wire.grpc_options()) as channel:
            stub: Any = device_pb2_grpc.DeviceServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                reply = getattr(stub, call)(request, timeout=self._wire.limits.call_timeout_s)
            except grpc.RpcError as error:
                code = error.code()
                if code is grpc.StatusCode.NOT_FOUND:
                    return None
                raise LinkError(
                    f"{call}({what}) at {address} failed ({code.name}): {error.details()}"
                ) from error
        return bytes(reply.content)


class DevicePieceSource:
    """``agent.ports.PieceSource``: the agent's own, over a connection that is closed afterwards."""

    __slots__ = ("_device_id", "_draw_no", "_wire")

    def __init__(self, wire: Wire, device_id: str) -> None:
        self._wire = wire
        self._device_id = device_id
        self._draw_no = 0

    async def fetch(self, ranges: Sequence[PieceRange]) -> AsyncIterator[PieceChunk]:
        wire, network = self._wire, self._wire.scenario.network
        self._draw_no += 1
        draw = rng(wire.scenario.devices.seed, self._device_id, "fetch", str(self._draw_no))
        address = str(wire.grpc)
        wire.traffic.calls += 1
        async with (
            wire.fetches,
            grpc.aio.insecure_channel(address, options=wire.grpc_options()) as channel,
        ):
            async for chunk in GrpcPieceSource(channel, address, self._device_id).fetch(ranges):
                if network.piece_loss_rate > 0 and draw.random() < network.piece_loss_rate:
                    raise LinkError(
                        f"the simulated network broke the stream of pieces from {address}"
                    )
                if network.piece_bytes_per_s > 0:
                    await asyncio.sleep(len(chunk.data) / network.piece_bytes_per_s)
                wire.traffic.bytes_fetched += len(chunk.data)
                yield chunk
