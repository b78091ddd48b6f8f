"""The MQTT link against real brokers: Debian's Mosquitto and the embedded iotcore."""

import asyncio
import sys
from contextlib import asynccontextmanager

import aiomqtt
import pytest

from agent.adapters.mqtt_link import MqttLimits, MqttLink
from agent.adapters.reconnect import ReconnectLimits
from agent.errors import LinkError
from fleet.messaging.broker import EmbeddedBroker
from protos import device_pb2, report_pb2, topics
from tests.support.mosquitto import Mosquitto, require_mosquitto

FLEET, DEVICE = "lab", "cam-1"
QUICK = MqttLimits(reconnect=ReconnectLimits(first_s=0.05, most_s=0.2))
PACK = topics.pack(FLEET)
STATUS = topics.status(FLEET, DEVICE)
REQUEST = topics.request(FLEET, DEVICE)
REPORT = topics.report(FLEET, DEVICE)


class Embedded:
    """iotcore, as 'fleet serve' runs it."""

    def __init__(self):
        self._broker = EmbeddedBroker("127.0.0.1", 0)

    async def start(self):
        await self._broker.start()

    async def stop(self):
        await self._broker.stop()

    @property
    def address(self):
        return (self._broker.address.host, self._broker.address.port)


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])
async def broker(request, tmp_path):
    if request.param == "mosquitto":
        require_mosquitto()
    started = Mosquitto(tmp_path) if request.param == "mosquitto" else Embedded()
    await started.start()
    yield started
    await started.stop()


@asynccontextmanager
async def fleet_side(address):
    """A client that sees and says what the fleet manager does."""
    client = aiomqtt.Client(*address, protocol=aiomqtt.ProtocolVersion.V5)
    async with client:
        yield client


@asynccontextmanager
async def running(address, limits=QUICK, boot_id="boot-1"):
    link = MqttLink(address, FLEET, DEVICE, boot_id, limits)
    task = asyncio.create_task(link.run())
    try:
        yield link, link.messages()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def wait_for(messages, wanted):
    """The next message for which ``wanted`` is true."""
    async with asyncio.timeout(90):
        async for message in messages:
            if wanted(message):
                return message
    raise AssertionError("the messages ended")


async def wait_connected(messages, state=True):
    await wait_for(messages, lambda message: message.connected is state)


async def next_on(client, topic, wanted=lambda payload: True):
    async with asyncio.timeout(90):
        async for message in client.messages:
            if str(message.topic) == topic and wanted(message.payload):
                return message
    raise AssertionError("the messages ended")


async def test_pack_acknowledgement_report_and_presence(broker):
    async with fleet_side(broker.address) as fleet:
        await fleet.publish(PACK, b"pack one", qos=1, retain=True)
        await fleet.subscribe([(topics.all_reports(FLEET), 1), (topics.all_statuses(FLEET), 1)])
        async with running(broker.address) as (link, messages):
            assert not link.connected
            message = await wait_for(messages, lambda message: message.pack is not None)
            assert message.pack == b"pack one"
            assert link.connected

            status = await next_on(fleet, STATUS)
            presence = device_pb2.Presence.FromString(status.payload)
            assert presence.online
            assert presence.boot_id == "boot-1"

            batch = report_pb2.ReportBatch(reports=[report_pb2.Report(device_id=DEVICE, seq=7)])
            await link.send(batch)
            report = await next_on(fleet, REPORT)
            assert report_pb2.ReportBatch.FromString(report.payload) == batch

            ack = report_pb2.ReportAck(ids=[report_pb2.ReportId(boot_id="boot-1", seq=7)])
            await fleet.publish(REQUEST, device_pb2.Downlink(ack=ack).SerializeToString(), qos=1)
            message = await wait_for(messages, lambda message: message.ack is not None)
            assert message.ack == ack

            await fleet.publish(PACK, b"pack two", qos=1, retain=True)
            message = await wait_for(messages, lambda message: message.pack is not None)
            assert message.pack == b"pack two"


async def test_a_clean_stop_says_goodbye(broker):
    async with fleet_side(broker.address) as fleet:
        await fleet.subscribe(topics.all_statuses(FLEET), 1)
        async with running(broker.address) as (_, messages):
            await wait_connected(messages)
        status = await next_on(
            fleet, STATUS, lambda payload: not device_pb2.Presence.FromString(payload).online
        )
        assert device_pb2.Presence.FromString(status.payload).boot_id == "boot-1"


async def test_a_device_that_dies_leaves_its_will(broker):
    async with fleet_side(broker.address) as fleet:
        await fleet.subscribe(topics.all_statuses(FLEET), 1)
        code = (
            "import asyncio; from agent.adapters.mqtt_link import MqttLink; "
            f"asyncio.run(MqttLink({broker.address!r}, {FLEET!r}, {DEVICE!r}, 'boot-1').run())"
        )
        device = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        status = await next_on(fleet, STATUS)
        assert device_pb2.Presence.FromString(status.payload).online
        device.kill()
        status = await next_on(fleet, STATUS)
        await device.wait()
        assert device_pb2.Presence.FromString(status.payload).boot_id == "boot-1"
        assert not device_pb2.Presence.FromString(status.payload).online


async def test_what_is_not_a_message_is_dropped(broker):
    async with fleet_side(broker.address) as fleet, running(broker.address) as (link, messages):
        await wait_connected(messages)
        await fleet.publish(REQUEST, b"\xff\xff not protobuf", qos=1)
        await fleet.publish(REQUEST, b"", qos=1)
        await fleet.publish(PACK, b"", qos=1, retain=True)
        await fleet.publish(PACK, b"a pack", qos=1)
        message = await wait_for(messages, lambda message: True)
        assert message.pack == b"a pack"
        assert link.dropped == 1
        assert link.connected


async def test_a_report_that_is_too_large_is_refused(broker):
    async with running(broker.address) as (link, messages):
        await wait_connected(messages)
        event = report_pb2.DeploymentEvent(reason="x" * 70_000)
        batch = report_pb2.ReportBatch(reports=[report_pb2.Report(deployment=event)])
        with pytest.raises(LinkError, match="at most 65536 fit one message"):
            await link.send(batch)


async def test_without_a_broker_nothing_is_sent_and_nothing_breaks():
    async with running(("127.0.0.1", 1)) as (link, _):
        await asyncio.sleep(0)
        with pytest.raises(LinkError, match=r"not connected to the broker at 127.0.0.1:1"):
            await link.send(report_pb2.ReportBatch())


@pytest.mark.mosquitto
async def test_after_a_restart_of_the_broker_the_pack_comes_again(tmp_path):
    require_mosquitto()
    broker = Mosquitto(tmp_path)
    await broker.start()
    async with running(broker.address) as (link, messages):
        await wait_connected(messages)
        await broker.stop()
        await wait_connected(messages, False)
        assert not link.connected
        with pytest.raises(LinkError):
            await link.send(report_pb2.ReportBatch())
        await broker.start()
        # It forgot everything; the fleet manager publishes the pack again when it reconnects.
        async with fleet_side(broker.address) as fleet:
            await fleet.publish(PACK, b"the pack", qos=1, retain=True)
        message = await wait_for(messages, lambda message: message.pack is not None)
        assert message.pack == b"the pack"
        assert link.connected
    await broker.stop()


@pytest.mark.mosquitto
async def test_a_reconnect_brings_the_retained_pack_again(tmp_path):
    require_mosquitto()
    broker = Mosquitto(tmp_path)
    await broker.start()
    async with fleet_side(broker.address) as fleet:
        await fleet.publish(PACK, b"kept", qos=1, retain=True)
        async with running(broker.address) as (_, messages):
            await wait_for(messages, lambda message: message.pack == b"kept")
            async with fleet_side_as_device(broker.address):
                await wait_connected(messages, False)
            message = await wait_for(messages, lambda message: message.pack is not None)
            assert message.pack == b"kept"
    await broker.stop()


@asynccontextmanager
async def fleet_side_as_device(address):
    """Takes the device's name, which throws the device off for as long as it takes to leave again."""
    client = aiomqtt.Client(*address, identifier=DEVICE, protocol=aiomqtt.ProtocolVersion.V5)
    async with client:
        yield
