"""The MQTT side of a simulated device: a real connection of its own, and the faults of its line.

Rules: faults happen here and nowhere above: a cut is a cut connection (the broker sends the will), a
lost report is one that never leaves, a silent device is one whose link sends nothing any more. What
the fleet manager sees is what it would see of a real device.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.message import DecodeError

from agent.adapters.inbox import Inbox, downlink_message
from agent.adapters.reconnect import Reconnect
from agent.errors import LinkError
from agent.ports import DownlinkMessage
from fleet.messaging import BrokerError, Message, MqttClient, Will
from protos import device_pb2, report_pb2, topics
from simulator.chance import rng
from simulator.models import Script, ScriptedServer
from simulator.wire import Wire

__all__ = ["DeviceLink", "Silence"]


class _Line(MqttClient):
    """An MQTT connection that can be cut."""

    __slots__ = ()

    def cut(self) -> None:
        """Drop the connection without a word, so that the broker sends the will."""
        self._fail("the simulated network was cut")


class Silence:
    """The fault of a model that keeps a device from reporting, from its commit on and while it serves."""

    __slots__ = ("_device_id", "_digest", "_script", "_server")

    def __init__(self, script: Script, server: ScriptedServer, device_id: str) -> None:
        self._script = script
        self._server = server
        self._device_id = device_id
        self._digest = ""

    def fallen(self) -> bool:
        """Whether the device reports nothing now."""
        return bool(self._digest) and self._digest in self._server.active()

    def sent(self, batch: report_pb2.ReportBatch) -> None:
        """These reports are on their way: the commit of a silencing bundle is the last."""
        for report in batch.reports:
            event = report.deployment
            if event.outcome == report_pb2.OUTCOME_COMMITTED and self._script.falls_silent(
                self._device_id, event.manifest_sha256
            ):
                self._digest = event.manifest_sha256


class DeviceLink:
    """``agent.ports.Link`` over the small MQTT client that thousands of fit in a process with."""

    __slots__ = (
        "_boot_id", "_client", "_device_id", "_draw_no", "_inbox", "_silence", "_wire",
    )  # fmt: skip

    name: Final = "mqtt"

    def __init__(
        self,
        wire: Wire,
        device_id: str,
        boot_id: str,
        silence: Silence | None = None,
    ) -> None:
        self._wire = wire
        self._device_id = device_id
        self._boot_id = boot_id
        self._silence = silence
        self._inbox = Inbox(wire.limits.inbox_messages)
        self._client: _Line | None = None
        self._draw_no = 0

    @property
    def connected(self) -> bool:
        return self._client is not None

    def messages(self) -> AsyncIterator[DownlinkMessage]:
        return self._inbox.messages()

    async def run(self) -> None:
        reconnect = Reconnect(self._wire.limits.reconnect, self._wire.jitter)
        while True:
            began = time.monotonic()
            wait_s = 0.0
            with contextlib.suppress(BrokerError):  # who is not connected is counted; try again
                wait_s = await self._connected_once()
            reconnect.lasted(time.monotonic() - began)
            await asyncio.sleep(wait_s or reconnect.next_wait_s())

    async def _connected_once(self) -> float:
        """One connection, until it ends; how long to stay away then (0: as the reconnect says)."""
        async with self._wire.connects:
            client = await self._connect()
        traffic = self._wire.traffic
        self._client = client
        traffic.came()
        self._inbox.put(DownlinkMessage(connected=True))
        try:
            return await self._until_end(client)
        except asyncio.CancelledError:
            await self._goodbye(client)
            raise
        finally:
            self._client = None
            traffic.connected -= 1
            self._inbox.put(DownlinkMessage(connected=False))

    async def _connect(self) -> _Line:
        wire = self._wire
        status = topics.status(wire.fleet, self._device_id)
        client = await _Line.connect(
            wire.mqtt.host,
            wire.mqtt.port,
            self._device_id,
            keep_alive_s=wire.limits.keep_alive_s,
            will=Will(status, self._presence(online=False)),
            on_message=self._received,
            limits=wire.limits.mqtt,
        )
        try:
            await client.subscribe(topics.request(wire.fleet, self._device_id))
            await client.subscribe(topics.pack(wire.fleet))
            await client.publish(status, self._presence(online=True), retain=True)
        except BaseException:
            client.cut()
            raise
        return client

    async def _until_end(self, client: _Line) -> float:
        network = self._wire.scenario.network
        if network.disconnect_per_hour <= 0:
            await asyncio.shield(client.closed)
            return 0.0
        try:
            async with asyncio.timeout(
                self._draw().expovariate(network.disconnect_per_hour / 3600)
            ):
                await asyncio.shield(client.closed)
            return 0.0
        except TimeoutError:
            self._wire.traffic.cuts += 1
            client.cut()
            return network.offline_s

    async def _goodbye(self, client: _Line) -> None:
        # A clean disconnect discards the will, so the device says itself that it goes.
        try:
            async with asyncio.timeout(2.0):
                status = topics.status(self._wire.fleet, self._device_id)
                await client.publish(status, self._presence(online=False), retain=True)
                await client.close()
        except (BrokerError, TimeoutError):
            client.cut()

    def _presence(self, *, online: bool) -> bytes:
        now_ms = int(time.time() * 1000)
        presence = device_pb2.Presence(online=online, boot_id=self._boot_id, at_unix_ms=now_ms)
        raw: bytes = presence.SerializeToString()
        return raw

    def _received(self, message: Message) -> None:
        if not message.payload:
            return  # an empty retained message only clears the topic
        if message.topic == topics.pack(self._wire.fleet):
            self._wire.traffic.packs += 1
            self._inbox.put(DownlinkMessage(pack=message.payload))
            return
        try:
            down = downlink_message(device_pb2.Downlink.FromString(message.payload))
        except DecodeError:
            return  # what is no Downlink is dropped, as the agent's own link does
        if down is not None:
            if down.ack is not None:
                self._wire.traffic.acks += len(down.ack.ids)
            self._inbox.put(down)

    async def send(self, batch: report_pb2.ReportBatch) -> None:
        client, traffic = self._client, self._wire.traffic
        if client is None:
            raise LinkError(
                f"{self._device_id} is not connected to the broker at {self._wire.mqtt}"
            )
        if self._silence is not None and self._silence.fallen():
            traffic.reports_silenced += len(batch.reports)
            return
        loss = self._wire.scenario.network.report_loss_rate
        if loss > 0 and self._draw().random() < loss:
            traffic.reports_lost += len(batch.reports)
            return
        raw = batch.SerializeToString()
        if len(raw) > topics.MAX_PAYLOAD_BYTES:
            raise LinkError(
                f"a batch of {len(raw)} bytes; {topics.MAX_PAYLOAD_BYTES} fit a message"
            )
        try:
            await client.publish(topics.report(self._wire.fleet, self._device_id), raw)
        except BrokerError as error:
            raise LinkError(
                f"the broker at {self._wire.mqtt} did not take a report: {error}"
            ) from error
        traffic.reports_sent += len(batch.reports)
        if self._silence is not None:
            self._silence.sent(batch)

    def _draw(self) -> random.Random:
        """A generator of its own for each question."""
        self._draw_no += 1
        seed = self._wire.scenario.devices.seed
        return rng(seed, self._device_id, "network", str(self._draw_no))
