"""The fleet manager on a broker: reports in, acknowledgements and the pack out, whatever the broker does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fleet.errors import ServerError
from fleet.messaging import Message, MqttClient
from fleet.messaging.bridge import Bridge, BridgeLimits
from fleet.messaging.broker import Address
from fleet.messaging.feed import PackFeed
from fleet.registry import Way
from protos import device_pb2, report_pb2, topics
from tests.support.reports import batch, window

TIMEOUT_S = 90.0
QUICK = BridgeLimits(reconnect_first_s=0.05, reconnect_most_s=0.2)


class Intake:
    """Remembers what it was given; ``fails`` makes the next batches fail."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.presence: list[tuple[str, Way, bool]] = []
        self.refusals: list[tuple[str, str]] = []
        self.fails = 0

    async def submit(self, device_id: str, batch: report_pb2.ReportBatch) -> report_pb2.ReportAck:
        if self.fails:
            self.fails -= 1
            raise ServerError("the disk is full")
        self.batches.append((device_id, len(batch.reports)))
        ids = [report_pb2.ReportId(boot_id=r.boot_id, seq=r.seq) for r in batch.reports]
        return report_pb2.ReportAck(ids=ids)

    async def present(self, device_id: str, way: Way, up: bool) -> None:
        self.presence.append((device_id, way, up))

    def refused(self, device_id: str, code: str, text: str) -> None:
        self.refusals.append((device_id, code))


@asynccontextmanager
async def bridged(
    broker: Address, fleet: str, intake: Intake, feed: PackFeed
) -> AsyncIterator[Any]:
    bridge = Bridge(lambda: broker, fleet, feed, intake, QUICK)
    task = asyncio.create_task(bridge.run())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await bridge.wait_connected()
        yield bridge
    finally:
        task.cancel()
        await asyncio.wait({task})


async def device(broker: Address, fleet: str, name: str) -> MqttClient:
    client = await MqttClient.connect(broker.host, broker.port, f"{fleet}-{name}")
    await client.subscribe(topics.request(fleet, name))
    return client


async def take_one(client: MqttClient) -> Message:
    async with asyncio.timeout(TIMEOUT_S):
        return await anext(client.messages())


async def test_a_report_is_handed_over_and_acknowledged_to_its_device(broker: Address) -> None:
    intake = Intake()
    async with bridged(broker, "f-ack", intake, PackFeed()):
        client = await device(broker, "f-ack", "d1")
        payload = batch(window(seq=4), window(seq=5)).SerializeToString()
        await client.publish(topics.report("f-ack", "d1"), payload)
        downlink = device_pb2.Downlink.FromString((await take_one(client)).payload)
        await client.close()
    assert [(one.boot_id, one.seq) for one in downlink.ack.ids] == [("b1", 4), ("b1", 5)]
    assert intake.batches == [("d1", 2)]


async def test_what_was_not_stored_is_not_acknowledged_and_the_bridge_lives(
    broker: Address,
) -> None:
    intake = Intake()
    intake.fails = 1
    async with bridged(broker, "f-full", intake, PackFeed()) as bridge:
        client = await device(broker, "f-full", "d1")
        for seq in (1, 2):
            await client.publish(
                topics.report("f-full", "d1"), batch(window(seq=seq)).SerializeToString()
            )
        downlink = device_pb2.Downlink.FromString((await take_one(client)).payload)
        await client.close()
        assert bridge.connects == 1
    assert len(downlink.ack.ids) == 1
    assert len(intake.batches) == 1


async def test_presence_is_noted_and_rubbish_counted(broker: Address) -> None:
    intake = Intake()
    async with bridged(broker, "f-status", intake, PackFeed()):
        client = await device(broker, "f-status", "d1")
        await client.publish(topics.report("f-status", "d1"), b"\xff\xff\xff")
        await client.publish(topics.status("f-status", "d1"), b"\xff\xff\xff")
        await client.publish(topics.status("f-status", "d1"), b"")
        presence = device_pb2.Presence(online=True, boot_id="b1")
        await client.publish(topics.status("f-status", "d1"), presence.SerializeToString())
        await client.publish(topics.report("f-status", "d1"), batch(window()).SerializeToString())
        await take_one(client)
        await client.close()
    assert intake.refusals == [("d1", "undecodable")] * 2
    assert intake.presence == [("d1", Way.MQTT, True)]


async def test_the_pack_is_retained_and_only_the_newest_counts(broker: Address) -> None:
    feed = PackFeed(b"one")
    async with bridged(broker, "f-pack", Intake(), feed):
        client = await MqttClient.connect(broker.host, broker.port, "f-pack-d")
        await client.subscribe(topics.pack("f-pack"))
        assert (await take_one(client)).payload == b"one"
        feed.set(b"two")
        assert (await take_one(client)).payload == b"two"
        await client.close()
        late = await MqttClient.connect(broker.host, broker.port, "f-pack-late")
        await late.subscribe(topics.pack("f-pack"))
        message = await take_one(late)
        assert (message.payload, message.retain) == (b"two", True)
        await late.publish(topics.pack("f-pack"), b"", retain=True)
        await late.close()


async def test_a_pack_that_is_too_large_is_not_published(
    broker: Address, caplog: pytest.LogCaptureFixture
) -> None:
    feed = PackFeed(b"x" * 70_000)
    async with bridged(broker, "f-large", Intake(), feed) as bridge:
        feed.set(b"small")
        client = await MqttClient.connect(broker.host, broker.port, "f-large-d")
        await client.subscribe(topics.pack("f-large"))
        assert (await take_one(client)).payload == b"small"
        await client.publish(topics.pack("f-large"), b"", retain=True)
        await client.close()
        assert bridge.connects == 1


async def test_many_devices_at_once_are_all_acknowledged(broker: Address) -> None:
    intake = Intake()
    async with bridged(broker, "f-many", intake, PackFeed()):
        clients = [await device(broker, "f-many", f"d{n}") for n in range(40)]

        async def report(number: int, client: MqttClient) -> None:
            for seq in range(1, 11):
                payload = batch(window(f"d{number}", seq=seq)).SerializeToString()
                await client.publish(topics.report("f-many", f"d{number}"), payload)
            for _ in range(10):
                await take_one(client)

        await asyncio.gather(*(report(n, one) for n, one in enumerate(clients)))
        await asyncio.gather(*(client.close() for client in clients))
    assert len(intake.batches) == 400


@pytest.mark.mosquitto
async def test_after_the_broker_forgot_everything_the_pack_is_there_again(
    own_mosquitto: Any,
) -> None:
    broker = Address("127.0.0.1", own_mosquitto.port)
    intake = Intake()
    async with bridged(broker, "f-again", intake, PackFeed(b"pack")) as bridge:
        await asyncio.to_thread(own_mosquitto.restart)
        async with asyncio.timeout(TIMEOUT_S):
            while bridge.connects < 2:
                await asyncio.sleep(0.02)
            await bridge.wait_connected()
        client = await device(broker, "f-again", "d1")
        await client.subscribe(topics.pack("f-again"))
        assert (await take_one(client)).payload == b"pack"
        await client.publish(topics.report("f-again", "d1"), batch(window()).SerializeToString())
        await take_one(client)
        await client.close()
    assert intake.batches == [("d1", 1)]


async def test_the_feed_skips_what_is_old() -> None:
    feed = PackFeed()
    assert (feed.version, feed.pack) == (0, b"")
    waiting = asyncio.create_task(feed.newer(0))
    await asyncio.sleep(0)
    assert feed.set(b"1")
    assert not feed.set(b"1")
    assert feed.set(b"2")
    assert await waiting == (2, b"2")
    assert await feed.newer(0) == (2, b"2")
