"""The fleet's certificates on disk: right by an independent verifier, made once, renewed in time."""

import datetime
import stat
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fleet.errors import ConfigError
from fleet.home import PkiPaths
from fleet.registry.authority import load_authority, load_certificate, new_key, spki_sha256
from fleet.registry.device_ca import identity_key, issue_to_device
from fleet.registry.pki import init_pki, renew_servers, require_pki, server_names
from fleet.registry.settings import check_host_names
from protos.identity import DeviceName

NOW_S = 1_800_000_000.0
DAY_S = 86400.0


@pytest.fixture
def paths(tmp_path: Path) -> PkiPaths:
    made = PkiPaths(tmp_path / "pki")
    init_pki(made, "lab", ["fleet.example.com", "10.0.0.7"], NOW_S)
    return made


def at(now_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now_s, datetime.UTC)


def verify_server(paths: PkiPaths, leaf: Path, name: str, now_s: float = NOW_S) -> None:
    store = Store([load_certificate(paths.server_ca)])
    verifier = (
        PolicyBuilder().store(store).time(at(now_s)).build_server_verifier(x509.DNSName(name))
    )
    verifier.verify(load_certificate(leaf), [])


def test_an_independent_verifier_believes_the_servers(paths: PkiPaths) -> None:
    for leaf in (paths.server, paths.broker):
        verify_server(paths, leaf, "fleet.example.com")
        verify_server(paths, leaf, "localhost")
        with pytest.raises(VerificationError):
            verify_server(paths, leaf, "other.example.com")
        with pytest.raises(VerificationError):
            verify_server(paths, leaf, "localhost", NOW_S + 91 * DAY_S)
    assert set(server_names(paths.server)) == {
        "localhost", "127.0.0.1", "::1", "fleet.example.com", "10.0.0.7",
    }  # fmt: skip


def test_a_device_and_the_manager_are_clients_of_the_device_ca(paths: PkiPaths) -> None:
    authority = load_authority(paths.device_ca, paths.device_ca_key)
    key = new_key()
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    name = DeviceName("lab", "camera", "cam-1")
    device = issue_to_device(authority, name, identity_key(der), NOW_S, 7 * DAY_S)
    verifier = PolicyBuilder().store(Store([authority.certificate])).time(at(NOW_S))
    for leaf in (device, load_certificate(paths.manager)):
        assert verifier.build_client_verifier().verify(leaf, [])
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    sans = device.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [one.value for one in sans] == ["spiffe://lab/class/camera/device/cam-1"]
    assert device.subject.rfc4514_string() == "CN=cam-1"
    assert load_certificate(paths.manager).subject.rfc4514_string() == "CN=fleet-manager"
    other = PolicyBuilder().store(Store([load_certificate(paths.server_ca)])).time(at(NOW_S))
    with pytest.raises(VerificationError):
        other.build_client_verifier().verify(device, [])


def test_authorities_sign_ends_and_nothing_below(paths: PkiPaths) -> None:
    for path in (paths.server_ca, paths.device_ca):
        found = load_certificate(path)
        constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
        assert constraints.critical
        assert isinstance(found.public_key(), ec.EllipticCurvePublicKey)
        usage = found.extensions.get_extension_for_class(x509.KeyUsage).value
        assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    leaf = load_certificate(paths.server).extensions
    assert leaf.get_extension_for_class(x509.BasicConstraints).value.ca is False
    authority = load_certificate(paths.server_ca).extensions
    assert (
        leaf.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        == authority.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )


def test_keys_are_private_and_the_list_of_revoked_is_empty(paths: PkiPaths) -> None:
    for path in paths.folder.iterdir():
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o600 if path.name.endswith(".key.pem") else 0o644), path.name
    crl = x509.load_pem_x509_crl(paths.revoked.read_bytes())
    assert list(crl) == []
    assert crl.is_signature_valid(load_certificate(paths.device_ca).public_key())  # type: ignore[arg-type]


def test_made_again_nothing_changes(paths: PkiPaths) -> None:
    before = {path.name: path.read_bytes() for path in paths.folder.iterdir()}
    assert init_pki(paths, "lab", (), NOW_S + DAY_S) == ()
    assert {path.name: path.read_bytes() for path in paths.folder.iterdir()} == before


def test_other_names_make_other_servers_under_the_same_authority(paths: PkiPaths) -> None:
    fingerprint = spki_sha256(load_certificate(paths.server_ca))
    assert init_pki(paths, "lab", ["new.example.com"], NOW_S) == ("server.pem", "broker.pem")
    verify_server(paths, paths.server, "new.example.com")
    assert spki_sha256(load_certificate(paths.server_ca)) == fingerprint


def test_what_expires_is_renewed_in_its_last_third(paths: PkiPaths) -> None:
    assert renew_servers(paths, (), NOW_S + 59 * DAY_S) == ()
    later_s = NOW_S + 61 * DAY_S
    assert renew_servers(paths, (), later_s) == ("server.pem", "broker.pem", "fleet-manager.pem")
    verify_server(paths, paths.server, "fleet.example.com", later_s + 29 * DAY_S)  # its names stay


def test_a_stop_between_any_two_files_is_mended_by_doing_it_again(tmp_path: Path) -> None:
    whole = PkiPaths(tmp_path / "whole")
    init_pki(whole, "lab", (), NOW_S)
    order = sorted(whole.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for count in range(len(order)):
        part = PkiPaths(tmp_path / f"part-{count}")
        part.folder.mkdir()
        for path in order[:count]:
            (part.folder / path.name).write_bytes(path.read_bytes())
        init_pki(part, "lab", (), NOW_S)
        require_pki(part)
        verify_server(part, part.server, "localhost")
        load_authority(part.device_ca, part.device_ca_key)


def test_what_is_missing_or_mixed_up_is_said(paths: PkiPaths) -> None:
    paths.server_ca_key.write_bytes(paths.device_ca_key.read_bytes())
    with pytest.raises(ConfigError, match=r"is not the key of .*server-ca\.pem"):
        init_pki(paths, "lab", (), NOW_S)
    paths.server_ca_key.write_bytes(b"x")
    with pytest.raises(ConfigError, match="is not an unencrypted private key"):
        init_pki(paths, "lab", (), NOW_S)
    paths.device_ca.unlink()
    with pytest.raises(ConfigError, match=r"device-ca\.pem is missing .*run `fleet tls init`"):
        require_pki(paths)


@pytest.mark.parametrize("name", ["", "a b", "-x", "host:1", "http://x", "x" * 254, "*.x"])
def test_names_that_cannot_stand_in_a_certificate(name: str) -> None:
    with pytest.raises(ConfigError, match=r"\[tls\] names has .* no host name and no address"):
        check_host_names([name], "[tls] names")


def test_time_now_is_within_a_new_certificate(tmp_path: Path) -> None:
    paths = PkiPaths(tmp_path / "pki")
    init_pki(paths, "lab", (), time.time())
    verify_server(paths, paths.server, "localhost", time.time() - 3600)
