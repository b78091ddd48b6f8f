"""What the fleet manager does on the broker: hears its devices, acknowledges, publishes the pack.

Rules kept here: an acknowledgement goes out only after the commit; the newest pack is published
again after every reconnect, because a broker may have forgotten it; a message that cannot be
understood is counted and dropped; when the connection breaks it is made anew, with growing pauses,
for as long as the fleet manager runs. One connection receives and another publishes, so that a full
queue on the way in can never hold up what has to go out.
"""

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from fleet.errors import ServerError
from fleet.messaging.broker import Address
from fleet.messaging.client import ClientLimits, Message, MqttClient
from fleet.messaging.errors import BrokerError
from fleet.messaging.feed import PackFeed
from fleet.registry.presence import Way
from protos import device_pb2, report_pb2, topics

__all__ = ["Bridge", "BridgeLimits", "Intake"]

_LOG = logging.getLogger(__name__)


class Intake(Protocol):
    """Where the bridge hands over what it hears; ``fleet.monitor.ingest.Ingest`` is one."""

    async def submit(
        self, device_id: str, batch: report_pb2.ReportBatch
    ) -> report_pb2.ReportAck: ...

    async def present(self, device_id: str, way: Way, up: bool) -> None: ...

    def refused(self, device_id: str, code: str, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class BridgeLimits:
    handlers: int = 512  # messages being handled at once; they are committed together
    keep_alive_s: int = 30
    reconnect_first_s: float = 0.2
    reconnect_most_s: float = 10.0
    healthy_s: float = 10.0  # connected for this long: the next reconnect is quick again


class Bridge:
    """Keeps the fleet manager connected to a broker. ``run`` does the work until cancelled."""

    def __init__(
        self,
        address: Callable[[], Address],
        fleet: str,
        feed: PackFeed,
        intake: Intake,
        limits: BridgeLimits | None = None,
    ) -> None:
        self._address = address
        self._fleet = fleet
        self._feed = feed
        self._intake = intake
        self._limits = limits or BridgeLimits()
        self._ready = asyncio.Event()
        self.connects = 0
        self.published_version = 0  # of the feed, acknowledged by the broker on this connection

    @property
    def connected(self) -> bool:
        return self._ready.is_set()

    async def wait_connected(self) -> None:
        """Return once both connections are up and subscribed."""
        await self._ready.wait()

    async def run(self) -> None:
        """Connect and stay connected."""
        loop = asyncio.get_running_loop()
        pause_s = self._limits.reconnect_first_s
        while True:
            started = loop.time()
            try:
                await self._session()
            except BrokerError as error:
                _LOG.warning("no connection to the broker at %s: %s", self._address(), error)
            finally:
                self._ready.clear()
                self.published_version = 0
            if loop.time() - started >= self._limits.healthy_s:
                pause_s = self._limits.reconnect_first_s
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, no secret)
            pause_s = min(pause_s * 2, self._limits.reconnect_most_s)

    async def _session(self) -> None:
        """One pair of connections, from connecting until one of them ends."""
        limits = ClientLimits(inflight=self._limits.handlers)
        name = f"muster-{self._fleet[:32]}-{secrets.token_hex(4)}"
        address = self._address()
        async with contextlib.AsyncExitStack() as stack:
            clients = []
            for way in ("in", "out"):
                client = await MqttClient.connect(
                    address.host, address.port, f"{name}-{way}",
                    keep_alive_s=self._limits.keep_alive_s, limits=limits,
                )  # fmt: skip
                stack.push_async_callback(client.close)
                clients.append(client)
            inward, outward = clients
            await self._serve(inward, outward)

    async def _serve(self, inward: MqttClient, outward: MqttClient) -> None:
        broken: BrokerError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._limits.handlers):
                    group.create_task(self._handle_messages(inward, outward))
                for topic in (topics.all_statuses(self._fleet), topics.all_reports(self._fleet)):
                    await inward.subscribe(topic)
                group.create_task(self._publish_packs(outward))
                group.create_task(_until_closed(outward))
                self.connects += 1
                self._ready.set()
                _LOG.info("connected to the broker at %s", self._address())
        except* BrokerError as errors:
            # Raised below: what is raised in here comes out in a group before Python 3.11.4.
            broken = BrokerError(str(_first(errors)))
        if broken is not None:
            raise broken

    async def _publish_packs(self, outward: MqttClient) -> None:
        version = 0
        while True:
            version, pack = await self._feed.newer(version)
            if len(pack) > topics.MAX_PAYLOAD_BYTES:
                _LOG.error(
                    "the metadata pack has %d bytes, more than the %d a message may have: it was "
                    "not published; devices get it over gRPC",
                    len(pack), topics.MAX_PAYLOAD_BYTES,
                )  # fmt: skip
                continue
            await outward.publish(topics.pack(self._fleet), pack, qos=1, retain=True)
            self.published_version = version

    async def _handle_messages(self, inward: MqttClient, outward: MqttClient) -> None:
        async for message in inward.messages():
            device_id = topics.device_of(message.topic)
            if device_id is None:
                continue
            try:
                if message.topic.endswith("/report"):
                    await self._report(device_id, message, outward)
                else:
                    await self._status(device_id, message)
            except DecodeError as error:
                self._intake.refused(device_id, "undecodable", f"{message.topic}: {error}")
            except BrokerError:
                raise  # the connection is gone: the session ends and a new one begins
            except ServerError:
                # Not stored, already logged: without an acknowledgement the device sends it again.
                continue
        raise BrokerError("the connection was closed")

    async def _report(self, device_id: str, message: Message, outward: MqttClient) -> None:
        if len(message.payload) > topics.MAX_PAYLOAD_BYTES:
            self._intake.refused(device_id, "too_large", f"{len(message.payload)} bytes")
            return
        batch = report_pb2.ReportBatch.FromString(message.payload)
        ack = await self._intake.submit(device_id, batch)
        if ack.ids:
            downlink = device_pb2.Downlink(ack=ack)
            topic = topics.request(self._fleet, device_id)
            await outward.publish(topic, downlink.SerializeToString(), qos=1)

    async def _status(self, device_id: str, message: Message) -> None:
        if not message.payload:
            return  # a retained status that was cleared
        presence = device_pb2.Presence.FromString(message.payload)
        await self._intake.present(device_id, Way.MQTT, presence.online)


async def _until_closed(client: MqttClient) -> None:
    error = await asyncio.shield(client.closed)
    raise error or BrokerError("the connection was closed")


def _first(errors: BaseExceptionGroup[BrokerError]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
