"""The fleet manager over gRPC: a link of its own, signed metadata on demand, and pieces.

Rules kept here:
- Messages are bounded in both directions; every call has a deadline.
- A failed call becomes LinkError and says which call, to which server, and why. Nothing else gets out.
- grpc.aio gives None for an answer whose bytes are not the message that they should be: that is a failed call too.
- The link reconnects for ever with jitter. Proxies named in the environment are not used: the server is a neighbour.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from agent.adapters.inbox import Inbox, downlink_message
from agent.adapters.reconnect import Reconnect, ReconnectLimits
from agent.errors import LinkError
from agent.ports import DownlinkMessage, PieceChunk, PieceRange
from protos import device_pb2, device_pb2_grpc, report_pb2

__all__ = ["GrpcLimits", "GrpcLink", "GrpcMetadataSource", "GrpcPieceSource", "channel_options",
           "grpc_channel", "readable"]  # fmt: skip

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    call_timeout_s: float = 15.0
    # A stream of pieces has no deadline as a whole; one that stands still this long is given up.
    stall_timeout_s: float = 30.0
    keepalive_s: float = 30.0
    inbox_messages: int = 64
    receive_bytes: int = 1024 * 1024
    batch_bytes: int = 64 * 1024
    reconnect: ReconnectLimits = field(default_factory=ReconnectLimits)


def channel_options(limits: GrpcLimits | None) -> list[tuple[str, int]]:
    """How every channel to the fleet manager behaves."""
    limits = limits or GrpcLimits()
    return [
        ("grpc.max_receive_message_length", limits.receive_bytes),
        ("grpc.max_send_message_length", limits.receive_bytes),
        ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.min_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", int(limits.reconnect.most_s * 1000)),
        ("grpc.enable_http_proxy", 0),
    ]


def grpc_channel(address: str, limits: GrpcLimits | None = None) -> grpc.aio.Channel:
    """One channel for the link and the pieces; connects when it is first used."""
    return grpc.aio.insecure_channel(address, options=channel_options(limits))


def _stub(channel: Any) -> Any:
    return device_pb2_grpc.DeviceServiceStub(channel)  # type: ignore[no-untyped-call]


def readable(answer: T | None, call: str, address: str) -> T:
    """What a call was answered.

    Raises:
        LinkError: its bytes were no such message, for which grpc.aio has None.
    """
    if answer is None:
        raise LinkError(
            f"{call} at {address} was answered with bytes that cannot be read: check that agent and fleet manager "
            "are of versions that know each other"
        )
    return answer


def _failed(call: str, address: str, error: grpc.RpcError) -> LinkError:
    code = error.code() if hasattr(error, "code") else None
    details = error.details() if hasattr(error, "details") else str(error)
    name = code.name if code is not None else "no status"
    return LinkError(f"{call} at {address} failed ({name}): {details or 'no reason given'}")


class GrpcLink:
    """Implements ports.Link: Watch brings packs, the answer of Report is the acknowledgement."""

    name: Final = "grpc"

    def __init__(
        self,
        channel: Any,
        address: str,
        device_id: str,
        limits: GrpcLimits | None = None,
    ) -> None:
        self._address = address
        self._device_id = device_id
        self._limits = limits or GrpcLimits()
        self._stub = _stub(channel)
        self._inbox = Inbox(self._limits.inbox_messages)
        self._connected = False
        self._last_error = ""

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def dropped(self) -> int:
        """Messages down that came too fast."""
        return self._inbox.dropped

    def messages(self) -> AsyncIterator[DownlinkMessage]:
        return self._inbox.messages()

    async def run(self) -> None:
        reconnect = Reconnect(self._limits.reconnect)
        while True:
            began = time.monotonic()
            try:
                await self._watch()
                self._say_lost("the server ended the stream")
            except grpc.RpcError as error:
                self._say_lost(str(_failed("Watch", self._address, error)))
            finally:
                if self._connected:
                    self._connected = False
                    self._inbox.put(DownlinkMessage(connected=False))
            reconnect.lasted(time.monotonic() - began)
            await asyncio.sleep(reconnect.next_wait_s())

    async def _watch(self) -> None:
        call = self._stub.Watch(device_pb2.WatchRequest(device_id=self._device_id))
        try:
            # The server's first bytes prove that it is there; a pack may come much later.
            await call.wait_for_connection()
            self._up()
            async for down in call:
                self._up()
                message = None if down is None else downlink_message(down)
                if message is None:
                    log.warning("dropped a message from %s: of no known kind", self._address)
                else:
                    self._inbox.put(message)
        finally:
            call.cancel()

    def _up(self) -> None:
        if not self._connected:
            self._connected = True
            self._last_error = ""
            log.info("connected to the fleet manager at %s", self._address)
            self._inbox.put(DownlinkMessage(connected=True))

    def _say_lost(self, text: str) -> None:
        # The same failure again and again is said once.
        level = logging.DEBUG if text == self._last_error else logging.WARNING
        self._last_error = text
        log.log(level, "no connection to the fleet manager: %s", text)

    async def send(self, batch: report_pb2.ReportBatch) -> None:
        size = batch.ByteSize()
        if size > self._limits.batch_bytes:
            raise LinkError(
                f"a batch of {len(batch.reports)} reports has {size} bytes, "
                f"at most {self._limits.batch_bytes} fit one message"
            )
        try:
            ack = await self._stub.Report(batch, timeout=self._limits.call_timeout_s)
        except grpc.RpcError as error:
            raise _failed("Report", self._address, error) from error
        self._inbox.put(DownlinkMessage(ack=readable(ack, "Report", self._address)))

    async def hello(self, agent_version: str) -> device_pb2.HelloReply:
        """The fleet's name, its newest pack and its clock.

        Raises:
            LinkError: the server cannot be reached or answered with an error.
        """
        request = device_pb2.HelloRequest(device_id=self._device_id, agent_version=agent_version)
        try:
            reply: device_pb2.HelloReply | None = await self._stub.Hello(
                request, timeout=self._limits.call_timeout_s
            )
        except grpc.RpcError as error:
            raise _failed("Hello", self._address, error) from error
        return readable(reply, "Hello", self._address)


class GrpcMetadataSource:
    """Implements ports.MetadataSource over a channel of its own. Blocking: worker threads only."""

    def __init__(self, address: str, limits: GrpcLimits | None = None, channel: Any = None) -> None:
        """``channel``: on which the device shows its certificate; None: a plain one."""
        self._address = address
        self._limits = limits or GrpcLimits()
        self._channel = channel or grpc.insecure_channel(address, options=channel_options(limits))
        self._stub = _stub(self._channel)

    def get_metadata(self, name: str) -> bytes | None:
        request = device_pb2.MetadataRequest(name=name)
        try:
            reply = self._stub.GetMetadata(request, timeout=self._limits.call_timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise _failed(f"GetMetadata({name})", self._address, error) from error
        return bytes(reply.content)

    def get_target(self, path: str, sha256: str) -> bytes | None:
        request = device_pb2.TargetRequest(path=path, sha256=sha256)
        try:
            reply = self._stub.GetTarget(request, timeout=self._limits.call_timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise _failed(f"GetTarget({path})", self._address, error) from error
        return bytes(reply.content)

    def close(self) -> None:
        self._channel.close()


class GrpcPieceSource:
    """Implements ports.PieceSource."""

    def __init__(
        self,
        channel: Any,
        address: str,
        device_id: str,
        limits: GrpcLimits | None = None,
    ) -> None:
        self._address = address
        self._device_id = device_id
        self._limits = limits or GrpcLimits()
        self._stub = _stub(channel)

    async def fetch(self, ranges: Sequence[PieceRange]) -> AsyncIterator[PieceChunk]:
        """Raises LinkError when the stream breaks or stands still."""
        request = device_pb2.PieceRequest(
            device_id=self._device_id,
            pieces=[
                device_pb2.PieceRange(sha256=wanted.sha256, offset=wanted.offset)
                for wanted in ranges
            ],
        )
        call = self._stub.FetchPieces(request)
        try:
            while True:
                try:
                    async with asyncio.timeout(self._limits.stall_timeout_s):
                        chunk = await call.read()
                except TimeoutError as error:
                    raise LinkError(
                        f"FetchPieces at {self._address} stood still for "
                        f"{self._limits.stall_timeout_s:.0f} s"
                    ) from error
                if chunk is grpc.aio.EOF:
                    return
                chunk = readable(chunk, "FetchPieces", self._address)
                yield PieceChunk(chunk.sha256, int(chunk.offset), bytes(chunk.data))
        except grpc.RpcError as error:
            raise _failed("FetchPieces", self._address, error) from error
        finally:
            call.cancel()
