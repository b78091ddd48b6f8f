"""The gRPC link, metadata source and piece source against a real grpc.aio server."""

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

from agent.adapters.grpc_link import (
    GrpcLimits,
    GrpcLink,
    GrpcMetadataSource,
    GrpcPieceSource,
    grpc_channel,
)
from agent.adapters.reconnect import ReconnectLimits
from agent.errors import LinkError
from agent.ports import DownlinkMessage, PieceRange
from protos import device_pb2, device_pb2_grpc, report_pb2
from tests.support.daemon import free_port

QUICK = GrpcLimits(
    call_timeout_s=60.0, stall_timeout_s=60.0, reconnect=ReconnectLimits(first_s=0.05, most_s=0.2)
)
PIECES = {hashlib.sha256(data).hexdigest(): data for data in (b"a" * 100_000, b"b" * 300_000)}


class FleetManager(device_pb2_grpc.DeviceServiceServicer):
    """Answers like the fleet manager; ``packs`` feeds Watch."""

    def __init__(self):
        self.packs = asyncio.Queue()
        self.batches = []
        self.fail_reports = False
        self.stall = False

    async def Hello(self, request, context):
        return device_pb2.HelloReply(fleet="lab", pack=b"pack", server_unix_ms=1234)

    async def GetMetadata(self, request, context):
        if request.name == "broken.json":
            await context.abort(grpc.StatusCode.INTERNAL, "the disk is gone")
        if request.name != "1.root.json":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such file")
        return device_pb2.MetadataReply(content=b"root")

    async def GetTarget(self, request, context):
        if request.sha256 != "f" * 64:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such target")
        return device_pb2.TargetReply(content=b"manifest of " + request.path.encode())

    async def FetchPieces(self, request, context):
        for wanted in request.pieces:
            data = PIECES.get(wanted.sha256)
            if data is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"no piece {wanted.sha256}")
            for offset in range(wanted.offset, len(data), 64 * 1024):
                chunk = data[offset : offset + 64 * 1024]
                yield device_pb2.PieceChunk(sha256=wanted.sha256, offset=offset, data=chunk)
                if self.stall:
                    await asyncio.Event().wait()

    async def Report(self, request, context):
        if self.fail_reports:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the database is locked")
        self.batches.append(request)
        ids = [report_pb2.ReportId(boot_id=it.boot_id, seq=it.seq) for it in request.reports]
        return report_pb2.ReportAck(ids=ids)

    async def Watch(self, request, context):
        await context.send_initial_metadata(())
        while True:
            yield device_pb2.Downlink(pack=await self.packs.get())


@asynccontextmanager
async def serving(port, manager=None):
    server = grpc.aio.server()
    manager = manager or FleetManager()
    device_pb2_grpc.add_DeviceServiceServicer_to_server(manager, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield manager
    finally:
        await server.stop(0)


@asynccontextmanager
async def running(port, limits=QUICK):
    address = f"127.0.0.1:{port}"
    async with grpc_channel(address, limits) as channel:
        link = GrpcLink(channel, address, "cam-1", limits)
        task = asyncio.create_task(link.run())
        try:
            yield link, link.messages()
        finally:
            task.cancel()
            await asyncio.wait({task})


async def wait_for(messages, wanted):
    async with asyncio.timeout(90):
        async for message in messages:
            if wanted(message):
                return message
    raise AssertionError("the messages ended")


async def test_watch_brings_packs_and_report_brings_acknowledgements():
    port = free_port()
    async with serving(port) as manager, running(port) as (link, messages):
        await wait_for(messages, lambda message: message.connected is True)
        assert link.connected
        await manager.packs.put(b"pack one")
        assert (await wait_for(messages, lambda message: True)).pack == b"pack one"
        batch = report_pb2.ReportBatch(reports=[report_pb2.Report(boot_id="b", seq=3)])
        await link.send(batch)
        ack = (await wait_for(messages, lambda message: True)).ack
        assert [(it.boot_id, it.seq) for it in ack.ids] == [("b", 3)]
        assert manager.batches == [batch]


async def test_the_link_comes_back_when_the_server_does():
    port = free_port()
    async with running(port) as (link, messages):
        async with serving(port):
            await wait_for(messages, lambda message: message.connected is True)
        await wait_for(messages, lambda message: message.connected is False)
        assert not link.connected
        async with serving(port) as manager:
            await wait_for(messages, lambda message: message.connected is True)
            await manager.packs.put(b"again")
            assert (await wait_for(messages, lambda message: True)).pack == b"again"


async def test_a_server_that_is_not_there_was_never_connected():
    address = f"127.0.0.1:{free_port()}"
    async with grpc_channel(address, QUICK) as channel:
        link = GrpcLink(channel, address, "cam-1", QUICK)
        with pytest.raises(grpc.RpcError):
            await link._watch()
        assert not link.connected
        link._inbox.put(DownlinkMessage(pack=b"the only one"))
        assert (await wait_for(link.messages(), lambda message: True)).pack == b"the only one"


async def test_a_report_that_fails_says_why():
    port = free_port()
    async with serving(port) as manager, running(port) as (link, _):
        manager.fail_reports = True
        with pytest.raises(
            LinkError,
            match=r"Report at 127.0.0.1:\d+ failed \(UNAVAILABLE\): the database is locked",
        ):
            await link.send(report_pb2.ReportBatch())


async def test_a_batch_that_is_too_large_is_refused():
    port = free_port()
    async with serving(port), running(port) as (link, _):
        event = report_pb2.DeploymentEvent(reason="x" * 70_000)
        with pytest.raises(LinkError, match="at most 65536 fit one message"):
            await link.send(report_pb2.ReportBatch(reports=[report_pb2.Report(deployment=event)]))


async def test_hello_says_fleet_and_time():
    port = free_port()
    async with serving(port), running(port) as (link, _):
        reply = await link.hello("0.1.0")
        assert (reply.fleet, reply.pack, reply.server_unix_ms) == ("lab", b"pack", 1234)


async def test_metadata_and_targets_by_name():
    port = free_port()
    async with serving(port):
        source = GrpcMetadataSource(f"127.0.0.1:{port}", QUICK)
        ask = asyncio.to_thread
        assert await ask(source.get_metadata, "1.root.json") == b"root"
        assert await ask(source.get_metadata, "2.root.json") is None
        assert (
            await ask(source.get_target, "bundles/cam/m-1", "f" * 64)
            == b"manifest of bundles/cam/m-1"
        )
        assert await ask(source.get_target, "bundles/cam/m-1", "0" * 64) is None
        with pytest.raises(
            LinkError, match=r"GetMetadata\(broken.json\) at .* \(INTERNAL\): the disk is gone"
        ):
            await ask(source.get_metadata, "broken.json")
        source.close()


async def test_metadata_from_a_server_that_is_not_there():
    source = GrpcMetadataSource(f"127.0.0.1:{free_port()}", QUICK)
    with pytest.raises(LinkError, match="UNAVAILABLE"):
        await asyncio.to_thread(source.get_metadata, "1.root.json")
    source.close()


async def fetched(port, ranges, limits=QUICK):
    address = f"127.0.0.1:{port}"
    found = {}
    async with grpc_channel(address, limits) as channel:
        async for chunk in GrpcPieceSource(channel, address, "cam-1", limits).fetch(ranges):
            assert chunk.offset == found.get(chunk.sha256, (chunk.offset, b""))[0] + len(
                found.get(chunk.sha256, (0, b""))[1]
            )
            start, data = found.get(chunk.sha256, (chunk.offset, b""))
            found[chunk.sha256] = (start, data + chunk.data)
    return found


async def test_pieces_come_in_order_from_where_they_stopped():
    port = free_port()
    first, second = PIECES
    async with serving(port):
        found = await fetched(port, [PieceRange(second, 123), PieceRange(first)])
    assert list(found) == [second, first]
    assert found[second] == (123, PIECES[second][123:])
    assert found[first] == (0, PIECES[first])


async def test_a_piece_that_is_not_there_is_a_link_error():
    port = free_port()
    async with serving(port):
        with pytest.raises(LinkError, match=r"FetchPieces at .* \(NOT_FOUND\): no piece 0000"):
            await fetched(port, [PieceRange("0" * 64)])


async def test_a_stream_that_stands_still_is_given_up():
    port = free_port()
    async with serving(port) as manager:
        manager.stall = True
        with pytest.raises(LinkError, match="stood still"):
            await fetched(
                port, [PieceRange(next(iter(PIECES)))], replace(QUICK, stall_timeout_s=0.2)
            )
