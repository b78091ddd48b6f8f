"""What the fleet manager does on the broker: hears its devices, acknowledges, publishes the pack.

Rules kept here: an acknowledgement goes out only after the commit; the newest pack is published
again after every reconnect, because a broker may have forgotten it; a message that cannot be
understood is counted and dropped; when the connection breaks it is made anew, with growing pauses,
for as long as the fleet manager runs. One connection receives and another publishes, so that a full
queue on the way in can never hold up what has to go out.

A broker that knows clients by their certificates gives each name one connection. It then does both:
an acknowledgement goes out at QoS 0, so that nothing on the way in waits for an answer behind it
(a lost one costs a repetition), reports are opened with their device's keys, and acknowledgements
are signed.
"""

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from fleet.errors import ConfigError, ServerError
from fleet.messaging.broker import Address
from fleet.messaging.client import ClientLimits, Message, MqttClient
from fleet.messaging.credentials import ManagerCredentials, Session
from fleet.messaging.errors import BrokerError
from fleet.messaging.feed import PackFeed
from fleet.messaging.signatures import (
    DeviceKeys,
    Keys,
    SignatureRefusedError,
    open_reports,
    require_identity,
)
from fleet.registry.presence import Way
from protos import device_pb2, report_pb2, topics

__all__ = ["Bridge", "BridgeLimits", "BrokerIdentities", "Intake"]

_LOG = logging.getLogger(__name__)
_PUBLISH_HEADER_BYTES: Final = (
    16  # of a PUBLISH beside topic and payload: type, length, packet id, properties
)


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
    renewal_look_s: float = 60.0  # how often to look whether our certificate was renewed


@dataclass(frozen=True, slots=True)
class BrokerIdentities:
    """How the two sides know each other over a broker with TLS."""

    ours: ManagerCredentials
    devices: DeviceKeys


class Bridge:
    """Keeps the fleet manager connected to a broker. ``run`` does the work until cancelled."""

    def __init__(
        self,
        address: Callable[[], Address],
        fleet: str,
        feed: PackFeed,
        intake: Intake,
        limits: BridgeLimits | None = None,
        *,
        identities: BrokerIdentities | None = None,
    ) -> None:
        """``identities``: connect over TLS; None: in the clear, to a broker on this machine."""
        self._identities = identities
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
        """A pair of connections, or one under our certificate, until one of them ends."""
        limits = ClientLimits(inflight=self._limits.handlers)
        name = f"muster-{self._fleet[:32]}-{secrets.token_hex(4)}"
        session = self._read_credentials()
        names = (f"{name}-in", f"{name}-out") if session is None else (topics.MANAGER,)
        address = self._address()
        async with contextlib.AsyncExitStack() as stack:
            clients = []
            for client_id in names:
                client = await MqttClient.connect(
                    address.host, address.port, client_id,
                    keep_alive_s=self._limits.keep_alive_s, limits=limits,
                    tls=None if session is None else session.tls,
                )  # fmt: skip
                stack.push_async_callback(client.close)
                clients.append(client)
            await self._serve(_Connection(clients[0], clients[-1], session))

    def _read_credentials(self) -> Session | None:
        if self._identities is None:
            return None
        try:
            return self._identities.ours.load()
        except ConfigError as error:
            raise BrokerError(str(error)) from error

    async def _serve(self, connection: "_Connection") -> None:
        inward, outward = connection.inward, connection.outward
        broken: BrokerError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._limits.handlers):
                    group.create_task(self._handle_messages(connection))
                for topic in (topics.all_statuses(self._fleet), topics.all_reports(self._fleet)):
                    await inward.subscribe(topic)
                group.create_task(self._publish_packs(outward))
                group.create_task(_until_closed(outward))
                if connection.session is not None:
                    group.create_task(self._until_renewed(connection.session))
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
            topic = topics.pack(self._fleet)
            most = topics.MAX_PAYLOAD_BYTES
            if outward.packet_bytes is not None:
                most = min(most, outward.packet_bytes - len(topic) - _PUBLISH_HEADER_BYTES)
            if len(pack) > most:
                _LOG.error(
                    "the metadata pack has %d bytes, more than the %d a message may have: it was "
                    "not published; devices get it over gRPC",
                    len(pack), most,
                )  # fmt: skip
                continue
            await outward.publish(topic, pack, qos=1, retain=True)
            self.published_version = version

    async def _until_renewed(self, session: Session) -> None:
        """Raises BrokerError, which ends the session, once our certificate is another one."""
        assert self._identities is not None
        while True:
            await asyncio.sleep(self._limits.renewal_look_s)
            try:
                stamp = self._identities.ours.stamp()
            except ConfigError as error:
                # What is connected goes on; the log says what the next connection will lack.
                _LOG.warning("%s", error)
                continue
            if stamp != session.stamp:
                raise BrokerError("our certificate was renewed: connecting again with it")

    async def _handle_messages(self, connection: "_Connection") -> None:
        async for message in connection.inward.messages():
            device_id = topics.device_of(message.topic)
            if device_id is None:
                continue
            try:
                if message.topic.endswith("/report"):
                    await self._report(device_id, message, connection)
                else:
                    await self._status(device_id, message)
            except DecodeError as error:
                self._intake.refused(device_id, "undecodable", f"{message.topic}: {error}")
            except SignatureRefusedError as error:
                self._intake.refused(device_id, error.code, str(error))
            except BrokerError:
                raise  # the connection is gone: the session ends and a new one begins
            except ServerError:
                # Not stored, already logged: without an acknowledgement the device sends it again.
                continue
        raise BrokerError("the connection was closed")

    async def _report(self, device_id: str, message: Message, connection: "_Connection") -> None:
        if len(message.payload) > topics.MAX_PAYLOAD_BYTES:
            self._intake.refused(device_id, "too_large", f"{len(message.payload)} bytes")
            return
        keys = await self._keys(device_id)
        batch = open_reports(message.payload, self._fleet, device_id, keys)
        ack = await self._intake.submit(device_id, batch)
        if ack.ids:
            await connection.acknowledge(self._fleet, device_id, ack)

    async def _keys(self, device_id: str) -> Keys | None:
        if self._identities is None:
            return None
        return await self._identities.devices.public_keys(device_id)

    async def _status(self, device_id: str, message: Message) -> None:
        if not message.payload:
            return  # a retained status that was cleared
        # Only shown to people, so not signed; but a name that a broker made up is no device.
        require_identity(await self._keys(device_id))
        presence = device_pb2.Presence.FromString(message.payload)
        await self._intake.present(device_id, Way.MQTT, presence.online)


@dataclass(frozen=True, slots=True)
class _Connection:
    """The two ways of one session; the same client under a certificate."""

    inward: MqttClient
    outward: MqttClient
    session: Session | None

    async def acknowledge(self, fleet: str, device_id: str, ack: report_pb2.ReportAck) -> None:
        topic = topics.request(fleet, device_id)
        if self.session is None:
            downlink = device_pb2.Downlink(ack=ack)
            await self.outward.publish(topic, downlink.SerializeToString(), qos=1)
            return
        downlink = device_pb2.Downlink(signed_ack=self.session.acks.sign(device_id, ack))
        await self.outward.publish(topic, downlink.SerializeToString(), qos=0)


async def _until_closed(client: MqttClient) -> None:
    error = await asyncio.shield(client.closed)
    raise error or BrokerError("the connection was closed")


def _first(errors: BaseExceptionGroup[BrokerError]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
