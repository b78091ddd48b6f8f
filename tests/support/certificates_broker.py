"""Certificates of a fleet for tests of the broker, where the fleet manager and the agents look for them."""

import datetime
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.state_dir import IdentityPaths
from fleet.home import PkiPaths
from fleet.messaging.mosquitto import (
    ACL_FILE,
    CONFIG_FILE,
    MosquittoSettings,
    mosquitto_acl,
    mosquitto_config,
)
from protos import topics

HOUR = datetime.timedelta(hours=1)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(slots=True)
class Ca:
    """A certificate authority; ``revoked`` is what its next list of revocations will say."""

    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    certificate: x509.Certificate = field(init=False)
    revoked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.certificate = self._builder(self.name, self.key.public_key(), is_ca=True).sign(
            self.key, hashes.SHA256()
        )

    def _builder(
        self, common_name: str, key: ec.EllipticCurvePublicKey, *, is_ca: bool = False
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - HOUR)
            .not_valid_after(now + 24 * HOUR)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), True)
        )

    def client(self, common_name: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        builder = self._builder(common_name, key).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False
        )
        return builder.sign(self.key, hashes.SHA256())

    def server(self, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = self._builder("server", key).add_extension(
            x509.SubjectAlternativeName(names), False
        )
        return builder.sign(self.key, hashes.SHA256())

    def write_revocations(self, path: Path) -> None:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(now + 24 * HOUR)
        )
        for serial in self.revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            )
        path.write_bytes(
            builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )


@dataclass(slots=True)
class Certificates:
    """Both CAs of one fleet and what they signed for its fleet manager and its broker."""

    pki: PkiPaths
    servers: Ca = field(default_factory=lambda: Ca("server-ca"))
    devices: Ca = field(default_factory=lambda: Ca("device-ca"))
    serials: dict[str, int] = field(default_factory=dict)
    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)

    def write(self) -> None:
        """Make the fleet's files."""
        pki = self.pki
        pki.folder.mkdir(parents=True, exist_ok=True)
        pki.server_ca.write_bytes(pem(self.servers.certificate))
        pki.device_ca.write_bytes(pem(self.devices.certificate))
        write_key(pki.device_ca_key, self.devices.key)
        broker = new_key()
        pki.broker.write_bytes(pem(self.servers.server(broker.public_key())))
        write_key(pki.broker_key, broker)
        self.write_manager()
        self.devices.write_revocations(pki.revoked)

    def write_manager(self) -> None:
        """A new certificate for the fleet manager at the broker."""
        manager = new_key()
        self.pki.manager.write_bytes(pem(self.devices.client(topics.MANAGER, manager.public_key())))
        write_key(self.pki.manager_key, manager)

    def enrol(self, device_id: str, paths: IdentityPaths, *, by: Ca | None = None) -> None:
        """Give a device a new key and certificate; ``by`` another CA than the fleet's."""
        ca = by or self.devices
        key = self.keys[device_id] = new_key()
        certificate = ca.client(device_id, key.public_key())
        self.serials[device_id] = certificate.serial_number
        paths.folder.mkdir(parents=True, exist_ok=True)
        write_key(paths.device_key, key)
        paths.certificate.write_bytes(pem(certificate) + pem(ca.certificate))
        paths.server_ca.write_bytes(pem(self.servers.certificate))

    def revoke(self, device_id: str) -> None:
        """Into the list of revocations; whoever has read it must read it again."""
        self.devices.revoked.append(self.serials[device_id])
        self.devices.write_revocations(self.pki.revoked)


def write_broker_files(folder: Path, pki: PkiPaths, fleet: str, port: int) -> Path:
    """The configuration that ``fleet broker config`` writes, for loopback and for whoever runs the tests."""
    settings = MosquittoSettings(fleet, "127.0.0.1", port, folder, pki.folder, "root")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / ACL_FILE).write_text(mosquitto_acl(fleet), encoding="utf-8")
    config = folder / CONFIG_FILE
    config.write_text(mosquitto_config(settings), encoding="utf-8")
    return config
