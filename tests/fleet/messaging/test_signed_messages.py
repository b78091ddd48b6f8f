"""Signed reports and acknowledgements: what is taken, what is refused and by which name, and files that do not fit."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.credentials import DeviceCredentials, Seal
from agent.errors import LinkError
from agent.state_dir import IdentityPaths
from fleet.errors import ConfigError
from fleet.home import PkiPaths
from fleet.messaging.credentials import ManagerCredentials
from fleet.messaging.signatures import (
    AckSigner,
    NoIdentities,
    SignatureRefusedError,
    key_digest,
    open_reports,
    require_identity,
)
from protos import report_pb2, topics
from protos.signed import ACK, REPORTS, signed_bytes
from tests.support.certificates_broker import Ca, Certificates, new_key
from tests.support.reports import batch, window

CA = Ca("device-ca")
KEY = new_key()
KEYS = {key_digest(KEY.public_key()): KEY.public_key()}
ACKED = report_pb2.ReportAck(ids=[report_pb2.ReportId(boot_id="b1", seq=1)])


def seal(**more: object) -> Seal:
    return Seal(("lab", "d1"), KEY, CA.certificate, **more)  # type: ignore[arg-type]


SIGNED = seal().sign(batch(window()).SerializeToString()).SerializeToString()


def manager(ca: Ca = CA, name: str = topics.MANAGER) -> AckSigner:
    key = new_key()
    certificate = ca.client(name, key.public_key())
    return AckSigner("lab", key, certificate.public_bytes(Encoding.DER))


def test_what_a_device_signed_is_opened_with_its_key() -> None:
    reports = batch(window(seq=1), window(seq=2))
    payload = seal().sign(reports.SerializeToString()).SerializeToString()
    assert open_reports(payload, "lab", "d1", KEYS) == reports
    assert open_reports(payload, "lab", "d1", None) == reports, "a fleet without identities"


@pytest.mark.parametrize("reports", [batch(), batch(window()), batch(window(), window(seq=2))])
def test_plain_reports_are_told_apart(reports: report_pb2.ReportBatch) -> None:
    payload = reports.SerializeToString()
    assert open_reports(payload, "lab", "d1", None) == reports
    with pytest.raises(SignatureRefusedError) as caught:
        open_reports(payload, "lab", "d1", KEYS)
    assert caught.value.code == "unsigned"


@pytest.mark.parametrize(
    ("fleet", "device", "keys", "code"),
    [
        ("other", "d1", KEYS, "bad_signature"),
        ("lab", "d2", KEYS, "bad_signature"),
        ("la", "bd1", KEYS, "bad_signature"),
        ("lab", "d1", {b"x" * 32: KEY.public_key()}, "unknown_key"),
        ("lab", "d1", {}, "no_identity"),
    ],
)
def test_refusals_have_names(fleet: str, device: str, keys: dict, code: str) -> None:  # type: ignore[type-arg]
    payload = seal().sign(batch(window()).SerializeToString()).SerializeToString()
    with pytest.raises(SignatureRefusedError) as caught:
        open_reports(payload, fleet, device, keys)
    assert caught.value.code == code


@given(st.binary(max_size=300))
def test_rubbish_is_refused_and_nothing_else_gets_out(payload: bytes) -> None:
    for keys in (None, {}, KEYS):
        try:
            opened = open_reports(payload, "lab", "d1", keys)
        except (SignatureRefusedError, DecodeError):
            continue
        assert keys is None
        assert isinstance(opened, report_pb2.ReportBatch)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_of_a_signed_message_never_passes(place: int, change: int) -> None:
    reports = batch(window())
    payload = bytearray(SIGNED)
    payload[place % len(payload)] ^= change
    try:
        opened = open_reports(bytes(payload), "lab", "d1", KEYS)
    except (SignatureRefusedError, DecodeError):
        return
    assert opened == reports, "it says something else than what was signed"


async def test_a_fleet_without_identities_asks_for_none() -> None:
    keys = await NoIdentities().public_keys("d1")
    assert keys is None
    require_identity(keys)


def test_signed_bytes_of_two_meanings_never_read_alike() -> None:
    assert signed_bytes(REPORTS, "a", "bc", b"x") != signed_bytes(REPORTS, "ab", "c", b"x")
    assert signed_bytes(REPORTS, "a", "b", b"x") != signed_bytes(ACK, "a", "b", b"x")


def test_an_acknowledgement_of_the_fleet_manager_is_opened_again_and_again() -> None:
    one, signer = seal(), manager()
    assert one.open(signer.sign("d1", ACKED)) == ACKED
    assert one.open(signer.sign("d1", ACKED)) == ACKED
    renewed = manager()
    assert one.open(renewed.sign("d1", ACKED)) == ACKED


@pytest.mark.parametrize(
    ("signer", "device", "message"),
    [
        (manager(), "d2", "signature is wrong"),
        (manager(name="d2"), "d1", "not the fleet manager's"),
        (manager(Ca("device-ca")), "d1", "the device CA did not issue"),
        (AckSigner("lab", KEY, b"no certificate"), "d1", "the device CA did not issue"),
    ],
)
def test_other_acknowledgements_are_refused(signer: AckSigner, device: str, message: str) -> None:
    with pytest.raises(LinkError, match=message):
        seal().open(signer.sign(device, ACKED))


def test_an_acknowledgement_under_a_lapsed_certificate_is_refused() -> None:
    later = (datetime.now(UTC) + timedelta(days=3)).timestamp()
    with pytest.raises(LinkError, match="valid from"):
        seal(now_s=lambda: later).open(manager().sign("d1", ACKED))


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates(PkiPaths(tmp_path / "pki"))
    made.write()
    return made


def test_a_device_that_is_not_enrolled_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"has no certificate to show: .*device.pem.*enroll"):
        DeviceCredentials(IdentityPaths(tmp_path), "lab", "d1").load()


def test_files_of_a_device_that_do_not_fit(certificates: Certificates, tmp_path: Path) -> None:
    paths = IdentityPaths(tmp_path / "d1")
    certificates.enrol("d1", paths)
    credentials = DeviceCredentials(paths, "lab", "d1")
    stamp = credentials.load().stamp
    chain = paths.certificate.read_bytes()
    own = x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.PEM)
    paths.certificate.write_bytes(own)
    assert credentials.stamp() != stamp
    with pytest.raises(LinkError, match=r"cannot be used|must hold"):
        credentials.load()
    paths.certificate.write_bytes(b"no certificate")
    with pytest.raises(LinkError, match="cannot be used"):
        credentials.load()
    certificates.enrol("other", IdentityPaths(tmp_path / "other"))
    paths.certificate.write_bytes(chain)
    paths.device_key.write_bytes(IdentityPaths(tmp_path / "other").device_key.read_bytes())
    with pytest.raises(LinkError, match="cannot be used"):
        credentials.load()


def test_files_of_the_fleet_manager_that_do_not_fit(certificates: Certificates) -> None:
    ours = ManagerCredentials(certificates.pki, "lab")
    stamp = ours.load().stamp
    certificates.write_manager()
    assert ours.load().stamp != stamp
    certificates.pki.manager.write_bytes(b"no certificate")
    with pytest.raises(ConfigError, match="cannot be used for TLS"):
        ours.load()
    certificates.pki.manager.unlink()
    with pytest.raises(ConfigError, match=r"needs .*fleet-manager.pem.*fleet tls init"):
        ours.load()
