"""The link over a broker: MQTT 5, QoS 1, a retained will that says the device is gone.

Rules kept here:
- The broker is not trusted and remembers nothing for us: clean sessions, the retained pack comes again with each
  subscription, reports stay in the spool until the fleet manager itself acknowledges them.
- Payloads above ``MAX_PAYLOAD_BYTES`` and payloads that do not parse are dropped and counted, never raised.
- Reconnects for ever with jitter; every queue is bounded.
- With credentials the broker is spoken to over mutual TLS, reports are signed, and an acknowledgement counts only when
  the fleet manager signed it: one that a broker made up would empty the spool. A renewed certificate is used at once,
  by connecting again.
- A cancellation always arrives: the library waits with ``asyncio.wait_for``, which in Python 3.11 forgets a
  cancellation that comes together with the result, so the time limits here are ``asyncio.timeout``.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

import aiomqtt
from google.protobuf.message import DecodeError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.adapters.credentials import Credentials, DeviceCredentials
from agent.adapters.inbox import Inbox, downlink_message
from agent.adapters.reconnect import Reconnect, ReconnectLimits
from agent.errors import LinkError
from agent.ports import DownlinkMessage
from protos import device_pb2, report_pb2, topics

__all__ = ["MqttLimits", "MqttLink"]

log = logging.getLogger(__name__)

_QUIET: Final = logging.getLogger("agent.adapters.mqtt_link.library")


@dataclass(frozen=True, slots=True)
class MqttLimits:
    keepalive_s: int = 30
    timeout_s: float = 10.0
    inbox_messages: int = 64
    queued_messages: int = 64
    max_payload_bytes: int = topics.MAX_PAYLOAD_BYTES
    renewal_look_s: float = 30.0  # how often to look whether the certificate was renewed
    reconnect: ReconnectLimits = field(default_factory=ReconnectLimits)


class _RenewedError(Exception):
    """The certificate of this connection is no longer the newest."""


class MqttLink:
    """Implements ports.Link over any MQTT 5 broker."""

    name: Final = "mqtt"

    def __init__(
        self,
        address: tuple[str, int],
        fleet: str,
        device_id: str,
        boot_id: str,
        limits: MqttLimits | None = None,
        *,
        identity: DeviceCredentials | None = None,
    ) -> None:
        """``identity``: over TLS with this certificate; None: in the clear, on this machine."""
        self._identity = identity
        self._credentials: Credentials | None = None
        self._host, self._port = address
        self._fleet = fleet
        self._device_id = device_id
        self._boot_id = boot_id
        self._limits = limits or MqttLimits()
        self._inbox = Inbox(self._limits.inbox_messages)
        self._client: aiomqtt.Client | None = None
        self._dropped = 0
        self._last_error = ""

    @property
    def connected(self) -> bool:
        return self._client is not None

    @property
    def dropped(self) -> int:
        """Messages down that were too large, did not parse or came too fast."""
        return self._dropped + self._inbox.dropped

    def messages(self) -> AsyncIterator[DownlinkMessage]:
        return self._inbox.messages()

    async def run(self) -> None:
        reconnect = Reconnect(self._limits.reconnect)
        while True:
            began = time.monotonic()
            try:
                await self._connected_once()
            except _RenewedError:
                log.info("the certificate was renewed: connecting to the broker again with it")
                continue
            except (aiomqtt.MqttError, OSError, ValueError, LinkError) as error:
                # ValueError: the library's answer to a host name that cannot be one.
                self._say_lost(error)
            reconnect.lasted(time.monotonic() - began)
            await asyncio.sleep(reconnect.next_wait_s())

    async def _connected_once(self) -> None:
        credentials = None if self._identity is None else self._identity.load()
        self._credentials = credentials
        client = self._new_client(credentials)
        async with client:
            _raise_forgotten_cancellation()
            renewed = asyncio.timeout(None)  # no deadline yet: _watch sets one
            try:
                async with renewed:
                    await self._use(client, renewed)
            except TimeoutError as error:
                if renewed.expired():
                    raise _RenewedError from error
                raise

    async def _use(self, client: aiomqtt.Client, renewed: asyncio.Timeout) -> None:
        """Subscribe and receive until the connection ends, or is cancelled by ``renewed``."""
        pack_topic = topics.pack(self._fleet)
        request_topic = topics.request(self._fleet, self._device_id)
        watch = asyncio.create_task(self._watch(renewed))
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await client.subscribe([(pack_topic, 1), (request_topic, 1)], timeout=math.inf)
            await self._publish_presence(client, online=True)
            self._client = client
            self._last_error = ""
            log.info("connected to the broker at %s:%d", self._host, self._port)
            self._inbox.put(DownlinkMessage(connected=True))
            async for message in client.messages:
                self._receive(str(message.topic), message.payload)
        except asyncio.CancelledError:
            await self._say_goodbye(client)
            raise
        finally:
            watch.cancel()
            if self._client is not None:
                self._client = None
                self._inbox.put(DownlinkMessage(connected=False))

    async def _watch(self, renewed: asyncio.Timeout) -> None:
        """End what ``renewed`` times, once there is a newer certificate."""
        if self._identity is None or self._credentials is None:
            return
        stamp = self._credentials.stamp
        while True:
            await asyncio.sleep(self._limits.renewal_look_s)
            try:
                is_newer = self._identity.stamp() != stamp
            except LinkError as error:
                # What is connected goes on; the next connection will say it louder.
                log.debug("%s", error)
                continue
            if is_newer:
                renewed.reschedule(asyncio.get_running_loop().time())
                return

    def _new_client(self, credentials: Credentials | None) -> aiomqtt.Client:
        connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        # A little above the payload: topic and properties travel in the same packet.
        connect.MaximumPacketSize = self._limits.max_payload_bytes + 1024
        connect.SessionExpiryInterval = 0
        return aiomqtt.Client(
            self._host,
            self._port,
            identifier=self._device_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            properties=connect,
            will=aiomqtt.Will(
                topics.status(self._fleet, self._device_id),
                self._presence(online=False),
                qos=1,
                retain=True,
            ),
            keepalive=self._limits.keepalive_s,
            timeout=self._limits.timeout_s,
            max_queued_incoming_messages=self._limits.inbox_messages,
            max_queued_outgoing_messages=self._limits.queued_messages,
            logger=_QUIET,
            tls_context=None if credentials is None else credentials.tls,
        )

    def _presence(self, *, online: bool) -> bytes:
        presence = device_pb2.Presence(
            online=online, boot_id=self._boot_id, at_unix_ms=int(time.time() * 1000)
        )
        return bytes(presence.SerializeToString())

    async def _publish_presence(self, client: aiomqtt.Client, *, online: bool) -> None:
        topic = topics.status(self._fleet, self._device_id)
        presence = self._presence(online=online)
        async with asyncio.timeout(self._limits.timeout_s):
            await client.publish(topic, presence, qos=1, retain=True, timeout=math.inf)

    async def _say_goodbye(self, client: aiomqtt.Client) -> None:
        # A clean disconnect discards the will, so the device says itself that it goes.
        try:
            async with asyncio.timeout(1.0):
                await self._publish_presence(client, online=False)
        except (aiomqtt.MqttError, TimeoutError):
            log.debug("the broker did not hear the goodbye")

    def _receive(self, topic: str, payload: object) -> None:
        if not isinstance(payload, bytes | bytearray):
            return
        raw = bytes(payload)
        if not raw:
            return  # an empty retained message only clears the topic
        if len(raw) > self._limits.max_payload_bytes:
            self._drop(topic, f"{len(raw)} bytes, at most {self._limits.max_payload_bytes}")
            return
        if topic == topics.pack(self._fleet):
            self._inbox.put(DownlinkMessage(pack=raw))
            return
        try:
            down = device_pb2.Downlink.FromString(raw)
        except DecodeError:
            self._drop(topic, "not a Downlink message")
            return
        if self._credentials is not None:
            self._receive_signed(topic, down, self._credentials)
            return
        message = downlink_message(down)
        if message is None:
            self._drop(topic, "a kind of message this agent does not know")
        else:
            self._inbox.put(message)

    def _receive_signed(
        self, topic: str, down: device_pb2.Downlink, credentials: Credentials
    ) -> None:
        if down.WhichOneof("body") != "signed_ack":
            # A pack is signed in itself, but its place is the topic that all devices share.
            self._drop(topic, "it is not signed by the fleet manager")
            return
        try:
            ack = credentials.seal.open(down.signed_ack)
        except LinkError as error:
            self._drop(topic, str(error))
            return
        self._inbox.put(DownlinkMessage(ack=ack))

    def _drop(self, topic: str, why: str) -> None:
        self._dropped += 1
        log.warning("dropped a message on %s: %s", topic, why)

    def _say_lost(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        # The same failure again and again is said once.
        level = logging.DEBUG if text == self._last_error else logging.WARNING
        self._last_error = text
        log.log(level, "no connection to the broker at %s:%d: %s", self._host, self._port, text)

    async def send(self, batch: report_pb2.ReportBatch) -> None:
        client = self._client
        if client is None:
            raise LinkError(f"not connected to the broker at {self._host}:{self._port}")
        raw = batch.SerializeToString()
        if self._credentials is not None:
            raw = self._credentials.seal.sign(raw).SerializeToString()
        if len(raw) > self._limits.max_payload_bytes:
            raise LinkError(
                f"a batch of {len(batch.reports)} reports has {len(raw)} bytes, "
                f"at most {self._limits.max_payload_bytes} fit one message"
            )
        topic = topics.report(self._fleet, self._device_id)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await client.publish(topic, raw, qos=1, timeout=math.inf)
        except (aiomqtt.MqttError, TimeoutError, ValueError) as error:
            raise LinkError(
                f"the broker at {self._host}:{self._port} did not take a report: {error}"
            ) from error


def _raise_forgotten_cancellation() -> None:
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
