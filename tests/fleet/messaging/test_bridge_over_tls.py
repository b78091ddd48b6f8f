"""The fleet manager on a broker that knows it by its certificate: renewed, missing, and one connection for all."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fleet.errors import ConfigError
from fleet.messaging.bridge import Bridge, BridgeLimits, BrokerIdentities
from fleet.messaging.broker import Address
from fleet.messaging.feed import PackFeed
from fleet.messaging.signatures import NoIdentities
from protos import device_pb2, topics
from tests.fleet.messaging.test_bridge import Intake
from tests.support.mosquitto_tls import FLEET, SecureMosquitto, take
from tests.support.reports import batch, window

pytestmark = pytest.mark.mosquitto
LIMIT_S = 90.0
QUICK = BridgeLimits(reconnect_first_s=0.05, reconnect_most_s=0.2, renewal_look_s=0.05)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SecureMosquitto]:
    secure = SecureMosquitto(tmp_path)
    secure.start()
    yield secure
    secure.stop()


@asynccontextmanager
async def bridged(broker: SecureMosquitto, feed: PackFeed) -> AsyncIterator[tuple[Bridge, Intake]]:
    intake = Intake()
    identities = BrokerIdentities(broker.manager(), NoIdentities())
    address = Address(*broker.address)
    bridge = Bridge(lambda: address, FLEET, feed, intake, QUICK, identities=identities)
    task = asyncio.create_task(bridge.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            await bridge.wait_connected()
        yield bridge, intake
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_pack_that_the_broker_would_not_take_ends_no_connection(
    broker: SecureMosquitto,
) -> None:
    feed = PackFeed(
        b"x" * (topics.MAX_PAYLOAD_BYTES - 1)
    )  # the packet around it is larger than the limit
    async with bridged(broker, feed) as (bridge, _):
        feed.set(b"small")
        client = await broker.connect("d1")
        await client.subscribe(topics.pack(FLEET))
        assert (await take(client))[1] == b"small"
        assert bridge.connects == 1
        await client.close()


async def test_many_reports_at_once_are_acknowledged_over_the_one_connection(
    broker: SecureMosquitto,
) -> None:
    async with bridged(broker, PackFeed(b"pack")) as (bridge, intake):
        client = await broker.connect("d1")
        await client.subscribe(topics.request(FLEET, "d1"))
        payload = batch(window()).SerializeToString()
        for _ in range(20):
            await asyncio.gather(
                *(client.publish(topics.report(FLEET, "d1"), payload) for _ in range(50))
            )
        for _ in range(1000):
            down = device_pb2.Downlink.FromString((await take(client))[1])
            assert down.WhichOneof("body") == "signed_ack"
        await client.close()
        assert bridge.connects == 1
    assert len(intake.batches) == 1000


async def test_a_renewed_certificate_is_used_by_connecting_again(broker: SecureMosquitto) -> None:
    async with bridged(broker, PackFeed(b"pack")) as (bridge, _):
        broker.certificates.pki.manager.unlink()  # gone for a moment: what is connected goes on
        await asyncio.sleep(0)
        assert bridge.connected
        broker.certificates.write_manager()
        async with asyncio.timeout(LIMIT_S):
            while bridge.connects < 2:
                await asyncio.sleep(0.02)
            await bridge.wait_connected()


async def test_a_missing_certificate_is_said_and_tried_again(
    broker: SecureMosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    broker.certificates.pki.manager.unlink()
    with pytest.raises(ConfigError):
        broker.manager().load()
    address = Address(*broker.address)
    identities = BrokerIdentities(broker.manager(), NoIdentities())
    bridge = Bridge(lambda: address, FLEET, PackFeed(), Intake(), QUICK, identities=identities)
    task = asyncio.create_task(bridge.run())
    async with asyncio.timeout(LIMIT_S):
        while "fleet tls init" not in caplog.text:
            await asyncio.sleep(0.02)
        broker.certificates.write_manager()
        await bridge.wait_connected()
    task.cancel()
    await asyncio.wait({task})
