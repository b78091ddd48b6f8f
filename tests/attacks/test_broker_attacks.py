"""Attacks over the broker: by a device with a certificate of its own, by somebody without one, by the broker itself.

Each against a real Mosquitto with the configuration that ``fleet broker config`` writes; the last part against one that
lets everybody write everything. That something is not delivered is shown by what is sent behind it and arrives alone.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.adapters.mqtt_link import MqttLimits, MqttLink
from agent.adapters.reconnect import ReconnectLimits
from agent.ports import DownlinkMessage
from fleet.broker_mode import BrokerPlace
from fleet.messaging import BrokerError, MqttClient, Will
from fleet.messaging.bridge import Bridge, BridgeLimits, BrokerIdentities
from fleet.messaging.broker import Address
from fleet.messaging.eviction import put_off
from fleet.messaging.feed import PackFeed
from fleet.messaging.signatures import AckSigner, Keys, key_digest
from fleet.registry.presence import Way
from protos import device_pb2, report_pb2, topics
from protos.signed import REPORTS, signed_bytes
from tests.support.certificates_broker import Ca, new_key, pem, write_key
from tests.support.mosquitto_tls import FLEET, SecureMosquitto, as_manager, take
from tests.support.reports import batch, window

pytestmark = pytest.mark.mosquitto
LIMIT_S = 90.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SecureMosquitto]:
    secure = SecureMosquitto(tmp_path)
    secure.start()
    yield secure
    secure.stop()


@pytest.fixture
def lying(tmp_path: Path) -> Iterator[SecureMosquitto]:
    secure = SecureMosquitto(tmp_path, lying=True)
    secure.start()
    yield secure
    secure.stop()


# --- a device with a certificate of its own -------------------------------------------------------


async def test_a_device_reports_as_another(broker: SecureMosquitto) -> None:
    async with as_manager(broker) as manager:
        await manager.subscribe(topics.all_reports(FLEET))
        thief = await broker.connect("a")
        with pytest.raises(BrokerError, match="not authorized"):
            await thief.publish(topics.report(FLEET, "b"), b"forged")
        await thief.publish(topics.report(FLEET, "a"), b"its own")
        assert await take(manager) == (topics.report(FLEET, "a"), b"its own")
        await thief.close()


@pytest.mark.parametrize(
    "topic", [topics.pack(FLEET), topics.request(FLEET, "b"), topics.request(FLEET, "a"), "other"]
)
async def test_a_device_writes_what_only_the_fleet_manager_may(
    broker: SecureMosquitto, topic: str
) -> None:
    async with as_manager(broker) as manager:
        victim, thief = await broker.connect("b"), await broker.connect("a")
        await victim.subscribe(topics.pack(FLEET))
        await victim.subscribe(topics.request(FLEET, "b"))
        with pytest.raises(BrokerError, match="not authorized"):
            await thief.publish(topic, b"forged", retain=True)
        await manager.publish(topics.pack(FLEET), b"the pack", retain=True)
        assert await take(victim) == (topics.pack(FLEET), b"the pack")
        await victim.close()
        await thief.close()


async def test_a_device_listens_to_everything(broker: SecureMosquitto) -> None:
    async with as_manager(broker) as manager:
        thief, victim = await broker.connect("a"), await broker.connect("b")
        for wanted in ("#", "$SYS/#", topics.request(FLEET, "+"), topics.all_reports(FLEET)):
            await thief.subscribe(wanted)  # granted, and silent
        await victim.publish(topics.report(FLEET, "b"), b"private")
        await manager.publish(topics.request(FLEET, "b"), b"private")
        await manager.publish(topics.request(FLEET, "a"), b"for a")
        assert await take(thief) == (topics.request(FLEET, "a"), b"for a")
        await thief.close()
        await victim.close()


async def test_a_device_takes_anothers_client_id(broker: SecureMosquitto) -> None:
    async with as_manager(broker) as manager:
        victim = await broker.connect("b")
        await victim.subscribe(topics.request(FLEET, "b"))
        thief = await MqttClient.connect(*broker.address, "b", tls=broker.tls("a"))
        await thief.subscribe(topics.request(FLEET, "b"))
        await manager.publish(topics.request(FLEET, "b"), b"still here")
        assert await take(victim) == (topics.request(FLEET, "b"), b"still here")
        assert not victim.closed.done()
        await thief.close()
        await victim.close()


async def test_a_device_leaves_a_will_in_anothers_name(broker: SecureMosquitto) -> None:
    async with as_manager(broker) as manager:
        await manager.subscribe(topics.all_statuses(FLEET))
        will = Will(topics.status(FLEET, "b"), b"forged")
        first = await MqttClient.connect(*broker.address, "a", tls=broker.tls("a"), will=will)
        again = await broker.connect("a")  # takes the place of the first, whose will is due
        async with asyncio.timeout(LIMIT_S):
            await first.closed
        await again.publish(topics.status(FLEET, "a"), b"its own")
        assert await take(manager) == (topics.status(FLEET, "a"), b"its own")
        await again.close()


async def test_a_name_that_is_a_wildcard(broker: SecureMosquitto) -> None:
    """The device CA signs none; a broker that took it for a pattern would let it write for everybody."""
    thief = await broker.connect("+")
    with pytest.raises(BrokerError, match="not authorized"):
        await thief.publish(topics.report(FLEET, "b"), b"forged")
    await thief.close()


async def test_an_oversize_packet(broker: SecureMosquitto) -> None:
    thief = await broker.connect("a")
    with pytest.raises(BrokerError, match=r"packet too large|closed the connection"):
        await thief.publish(topics.report(FLEET, "a"), b"x" * 70_000)
    again = await broker.connect("a")
    assert again.packet_bytes == 65536
    await again.close()


# --- somebody without one -------------------------------------------------------------------------


def client_context(broker: SecureMosquitto) -> ssl.SSLContext:
    """Believes the broker, shows nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(broker.certificates.pki.server_ca)
    return context


async def test_nobody_without_a_certificate(broker: SecureMosquitto) -> None:
    with pytest.raises(BrokerError):
        await broker.connect("a", client_context(broker))


async def test_plain_mqtt(broker: SecureMosquitto) -> None:
    with pytest.raises(BrokerError, match="cannot be used"):
        await MqttClient.connect(*broker.address, "a")


async def test_a_certificate_of_another_ca(broker: SecureMosquitto) -> None:
    broker.certificates.enrol("a", broker.identity("a"), by=Ca("device-ca"))
    with pytest.raises(BrokerError):
        await broker.connect("a")


async def test_a_device_signs_itself_the_fleet_managers_name(
    broker: SecureMosquitto, tmp_path: Path
) -> None:
    broker.enrol("a")
    own = x509.load_pem_x509_certificates(broker.identity("a").certificate.read_bytes())[0]
    forger = Ca("forger", key=broker.certificates.keys["a"])
    forger.name = "a"
    key = new_key()
    forged = forger.client(topics.MANAGER, key.public_key())
    write_key(tmp_path / "forged.key.pem", key)
    (tmp_path / "forged.pem").write_bytes(pem(forged) + pem(own))
    context = client_context(broker)
    context.load_cert_chain(tmp_path / "forged.pem", tmp_path / "forged.key.pem")
    with pytest.raises(BrokerError):
        await broker.connect(topics.MANAGER, context)


async def test_an_older_tls(broker: SecureMosquitto) -> None:
    context = broker.tls("a")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(BrokerError):
        await broker.connect("a", context)


async def test_a_broker_that_is_not_the_fleets(broker: SecureMosquitto) -> None:
    broker.enrol("a")
    broker.identity("a").server_ca.write_bytes(pem(Ca("server-ca").certificate))
    with pytest.raises(BrokerError, match="certificate verify failed"):
        await broker.connect("a")


async def test_a_revoked_device_is_out_and_nobody_else(broker: SecureMosquitto) -> None:
    thief, other = await broker.connect("a"), await broker.connect("b")
    broker.certificates.revoke("a")
    broker.reload()
    assert not thief.closed.done(), "an open connection is not cut by a list of revocations"
    await put_off(BrokerPlace(*broker.address, tls=True), broker.certificates.pki, "a")
    async with asyncio.timeout(LIMIT_S):
        await thief.closed
    with pytest.raises(BrokerError):
        await broker.connect("a")
    await other.publish(topics.report(FLEET, "b"), b"still here")
    await other.close()


# --- the broker itself ----------------------------------------------------------------------------


class Intake:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int]] = []
        self.refusals: list[tuple[str, str]] = []
        self.present_devices: list[str] = []

    async def submit(self, device_id: str, batch: report_pb2.ReportBatch) -> report_pb2.ReportAck:
        self.taken += [(device_id, one.seq) for one in batch.reports]
        ids = [report_pb2.ReportId(boot_id=it.boot_id, seq=it.seq) for it in batch.reports]
        return report_pb2.ReportAck(ids=ids)

    async def present(self, device_id: str, way: Way, up: bool) -> None:
        self.present_devices.append(device_id)

    def refused(self, device_id: str, code: str, text: str) -> None:
        self.refusals.append((device_id, code))


class EnrolledKeys:
    """The keys that the tests' certificates were made for; who is not enrolled has none."""

    def __init__(self, broker: SecureMosquitto) -> None:
        self._keys = broker.certificates.keys

    async def public_keys(self, device_id: str) -> Keys | None:
        key = self._keys.get(device_id)
        return {} if key is None else {key_digest(key.public_key()): key.public_key()}


@asynccontextmanager
async def bridged(broker: SecureMosquitto) -> AsyncIterator[Intake]:
    """The fleet manager on this broker."""
    intake = Intake()
    bridge = Bridge(
        lambda: Address(*broker.address),
        FLEET,
        PackFeed(b"the pack"),
        intake,
        BridgeLimits(reconnect_first_s=0.05, reconnect_most_s=0.2),
        identities=BrokerIdentities(broker.manager(), EnrolledKeys(broker)),
    )
    task = asyncio.create_task(bridge.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            await bridge.wait_connected()
        yield intake
    finally:
        task.cancel()
        await asyncio.wait({task})


def signed(
    broker: SecureMosquitto,
    signer: str,
    device_id: str,
    reports: report_pb2.ReportBatch,
    *,
    fleet: str = FLEET,
    claims: str = "",
) -> bytes:
    """Reports as ``signer`` signs them for ``device_id``, under the key digest of ``claims``."""
    raw = reports.SerializeToString()
    key = broker.certificates.keys[signer]
    signature = key.sign(signed_bytes(REPORTS, fleet, device_id, raw), ec.ECDSA(hashes.SHA256()))
    digest = key_digest(broker.certificates.keys[claims or signer].public_key())
    return report_pb2.SignedReports(
        batch=raw, signature=signature, key_sha256=digest
    ).SerializeToString()


async def test_reports_that_a_broker_makes_up(lying: SecureMosquitto) -> None:
    """Unsigned, by another's key, for another device or fleet, changed, of nobody: not counted, not acknowledged."""
    for name in ("a", "b", "liar"):
        lying.enrol(name)
    one = batch(window("b", seq=1))
    changed = report_pb2.SignedReports.FromString(signed(lying, "b", "b", one))
    changed.batch = batch(window("b", seq=1, failures=0)).SerializeToString()
    forgeries = [
        ("b", one.SerializeToString(), "unsigned"),
        ("b", signed(lying, "a", "b", one), "unknown_key"),
        ("b", signed(lying, "a", "b", one, claims="b"), "bad_signature"),
        ("a", signed(lying, "b", "b", one, claims="a"), "bad_signature"),
        ("b", signed(lying, "b", "b", one, fleet="other"), "bad_signature"),
        ("b", changed.SerializeToString(), "bad_signature"),
        ("ghost", signed(lying, "a", "ghost", batch(window("ghost"))), "no_identity"),
        ("b", b"\xff\xff\xff", "undecodable"),
    ]
    async with bridged(lying) as intake:
        liar = await lying.connect("liar")
        await liar.subscribe(topics.request(FLEET, "+"))
        for device_id, payload, _ in forgeries:
            await liar.publish(topics.report(FLEET, device_id), payload)
        presence = device_pb2.Presence(online=True, boot_id="x").SerializeToString()
        await liar.publish(topics.status(FLEET, "ghost"), presence)
        await liar.publish(
            topics.report(FLEET, "b"), signed(lying, "b", "b", batch(window("b", seq=7)))
        )
        topic, payload = await take(liar)
        await liar.close()
    ack = device_pb2.Downlink.FromString(payload).signed_ack
    assert topic == topics.request(FLEET, "b")
    assert [one.seq for one in report_pb2.ReportAck.FromString(ack.ack).ids] == [7]
    assert sorted(intake.refusals) == sorted(
        [(device_id, code) for device_id, _, code in forgeries] + [("ghost", "no_identity")]
    )
    assert intake.taken == [("b", 7)]
    assert intake.present_devices == []


@asynccontextmanager
async def linked(broker: SecureMosquitto, name: str) -> AsyncIterator[MqttLink]:
    """The agent's own link of this device."""
    limits = MqttLimits(renewal_look_s=0.05, reconnect=ReconnectLimits(first_s=0.05, most_s=0.2))
    identity = broker.credentials(name)
    link = MqttLink(broker.address, FLEET, name, "boot-1", limits, identity=identity)
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.wait({task})


async def next_down(link: MqttLink) -> DownlinkMessage:
    async with asyncio.timeout(LIMIT_S):
        return await anext(link.messages())


async def test_acknowledgements_that_a_broker_makes_up(lying: SecureMosquitto) -> None:
    """Each would empty the spool of what the fleet never got; the link drops them and goes on."""
    for name in ("a", "b", "liar"):
        lying.enrol(name)
    ack = report_pb2.ReportAck(ids=[report_pb2.ReportId(boot_id="boot-1", seq=1)])
    manager = lying.manager().load().acks
    own = x509.load_pem_x509_certificates(lying.identity("liar").certificate.read_bytes())[0]
    stranger, key = Ca("device-ca"), new_key()
    fake = stranger.client(topics.MANAGER, key.public_key())
    changed = manager.sign("b", ack)
    changed.ack = report_pb2.ReportAck(
        ids=[report_pb2.ReportId(boot_id="boot-1", seq=2)]
    ).SerializeToString()
    forgeries = [
        device_pb2.Downlink(ack=ack),
        device_pb2.Downlink(pack=b"a pack"),
        device_pb2.Downlink(signed_ack=manager.sign("a", ack)),
        device_pb2.Downlink(signed_ack=changed),
        device_pb2.Downlink(
            signed_ack=AckSigner(FLEET, lying.certificates.keys["liar"], der(own)).sign("b", ack)
        ),
        device_pb2.Downlink(signed_ack=AckSigner(FLEET, key, der(fake)).sign("b", ack)),
        device_pb2.Downlink(signed_ack=report_pb2.SignedAck(ack=b"x", certificate=b"no")),
    ]
    async with linked(lying, "b") as link:
        assert (await next_down(link)).connected
        liar = await lying.connect("liar")
        for forged in forgeries:
            await liar.publish(topics.request(FLEET, "b"), forged.SerializeToString())
        real = device_pb2.Downlink(signed_ack=manager.sign("b", ack))
        await liar.publish(topics.request(FLEET, "b"), real.SerializeToString())
        assert (await next_down(link)).ack == ack
        assert link.dropped == len(forgeries)
        assert link.connected
        await liar.close()


def der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


async def test_reports_and_acknowledgements_pass_and_a_renewed_certificate_is_used_at_once(
    broker: SecureMosquitto,
) -> None:
    broker.enrol("a")
    async with bridged(broker) as intake, linked(broker, "a") as link:
        assert (await next_down(link)).connected
        assert (await next_down(link)).pack == b"the pack"
        await link.send(batch(window("a", seq=1)))
        ack = (await next_down(link)).ack
        assert ack is not None
        assert [(one.boot_id, one.seq) for one in ack.ids] == [("b1", 1)]

        broker.enrol("a")  # a new key and certificate; the old key is known no longer
        assert (await next_down(link)).connected is False
        assert (await next_down(link)).connected
        assert (await next_down(link)).pack == b"the pack"
        await link.send(batch(window("a", seq=2)))
        ack = (await next_down(link)).ack
        assert ack is not None
    assert intake.taken == [("a", 1), ("a", 2)]
    assert intake.refusals == []
