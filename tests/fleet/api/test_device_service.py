"""The service for devices, over a real channel."""

import asyncio
from hashlib import sha256
from typing import Any

import grpc
import pytest

from agent.trust.limits import TrustLimits
from agent.trust.pack import open_pack
from protos import device_pb2, report_pb2
from tests.support.reports import batch, event, window

Lab = Any
TIMEOUT_S = 90.0


async def _ended(call: Any) -> None:
    if hasattr(call, "__aiter__"):
        async for _ in call:
            pass
    else:
        await call


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call was refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _ended(call)
    return caught.value.code(), caught.value.details() or ""


async def test_hello_gives_the_pack_and_the_time(lab: Lab) -> None:
    reply = await lab.devices.Hello(device_pb2.HelloRequest(device_id="d1"))
    assert reply.fleet == "lab"
    assert "timestamp.json" in open_pack(reply.pack, TrustLimits())
    assert abs(reply.server_unix_ms / 1000 - lab.manager.services.now_s()) < 60


async def test_metadata_and_manifests_by_name(lab: Lab) -> None:
    body = await lab.bundle_body()
    published = (await lab.http.post("/v1/bundles", json=body)).json()
    root = await lab.devices.GetMetadata(device_pb2.MetadataRequest(name="1.root.json"))
    assert root.content == lab.manager.home.root.read_bytes()
    digest = published["manifest_sha256"]
    target = device_pb2.TargetRequest(path=published["path"], sha256=digest)
    content = (await lab.devices.GetTarget(target)).content
    assert sha256(content).hexdigest() == digest
    for name in ("9.root.json", "../keys/root.pem", ""):
        code, text = await refusal(lab.devices.GetMetadata(device_pb2.MetadataRequest(name=name)))
        assert (code, text) == (grpc.StatusCode.NOT_FOUND, f"no metadata file {name!r}")
    target.sha256 = "0" * 64
    assert (await refusal(lab.devices.GetTarget(target)))[0] == grpc.StatusCode.NOT_FOUND


async def test_pieces_from_an_offset_in_the_order_asked_for(lab: Lab) -> None:
    pieces = [b"a" * 200_000, b"b" * 10]
    digests = [sha256(one).hexdigest() for one in pieces]
    for digest, data in zip(digests, pieces, strict=True):
        lab.manager.artifacts.put(digest, data)
    request = device_pb2.PieceRequest(
        device_id="d1",
        pieces=[
            device_pb2.PieceRange(sha256=digests[1], offset=4),
            device_pb2.PieceRange(sha256=digests[0], offset=150_000),
            device_pb2.PieceRange(sha256=digests[0]),
            device_pb2.PieceRange(sha256=digests[1], offset=10),
        ],
    )
    got = [
        (one.sha256, one.offset, len(one.data)) async for one in lab.devices.FetchPieces(request)
    ]
    assert got == [
        (digests[1], 4, 6),
        (digests[0], 150_000, 50_000),
        *(
            (digests[0], offset, min(65536, 200_000 - offset))
            for offset in range(0, 200_000, 65536)
        ),
    ]


async def test_pieces_that_cannot_be_given(lab: Lab) -> None:
    data = b"x" * 10
    digest = sha256(data).hexdigest()
    lab.manager.artifacts.put(digest, data)

    async def asked(sha: str, offset: int = 0, count: int = 1, device: str = "d1") -> Any:
        ranges = [device_pb2.PieceRange(sha256=sha, offset=offset)] * count
        request = device_pb2.PieceRequest(device_id=device, pieces=ranges)
        return (await refusal(lab.devices.FetchPieces(request)))[0]

    assert await asked("0" * 64) == grpc.StatusCode.NOT_FOUND
    assert await asked("../../etc/passwd") == grpc.StatusCode.INVALID_ARGUMENT
    assert await asked(digest, offset=11) == grpc.StatusCode.OUT_OF_RANGE
    assert await asked(digest, count=8193) == grpc.StatusCode.INVALID_ARGUMENT
    assert await asked(digest, device="No Device") == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_report_is_answered_after_the_commit(lab: Lab) -> None:
    ack = await lab.devices.Report(batch(window(seq=1), event(seq=2)))
    assert [one.seq for one in ack.ids] == [1, 2]
    detail = (await lab.http.get("/v1/devices/d1")).json()
    assert len(detail["windows"]) == 1
    assert not (await lab.devices.Report(report_pb2.ReportBatch())).ids


async def test_a_report_that_cannot_be_stored_is_to_be_sent_again(lab: Lab) -> None:
    with lab.manager.store.begin() as connection:
        connection.exec_driver_sql("DROP TABLE windows")
    code, text = await refusal(lab.devices.Report(batch(window())))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert text.startswith("not stored, send it again")


async def test_a_batch_that_is_too_large_is_refused(lab: Lab) -> None:
    large = batch(*(event(seq=n, reason="x" * 1000) for n in range(1, 80)))
    code, _ = await refusal(lab.devices.Report(large))
    assert code == grpc.StatusCode.INVALID_ARGUMENT


async def test_who_watches_gets_the_pack_now_and_at_each_change(lab: Lab) -> None:
    async def online() -> bool:
        response = await lab.http.get("/v1/devices/d1")
        return response.status_code == 200 and response.json()["online"]

    async def until(wanted: bool) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while await online() is not wanted:
                await asyncio.sleep(0.01)

    call = lab.devices.Watch(device_pb2.WatchRequest(device_id="d1"))
    first = await call.read()
    assert first.pack == lab.manager.feed.pack
    await until(True)
    await lab.http.post("/v1/bundles", json=await lab.bundle_body())
    second = await call.read()
    assert second.pack == lab.manager.feed.pack != first.pack
    call.cancel()
    await until(False)
    refused = lab.devices.Watch(device_pb2.WatchRequest(device_id=""))
    assert (await refusal(refused))[0] == grpc.StatusCode.INVALID_ARGUMENT
