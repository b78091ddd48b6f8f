"""Putting a device off a broker: by taking its place for a moment.

A broker checks a certificate when a connection is opened, and a list of revoked ones does not close what is open. But a
broker that names clients by their certificates allows each name one connection, so the fleet manager signs itself a
certificate for the device's name, valid for minutes, connects under it, and leaves. Nobody else is disturbed, and no
broker needs a way of its own for it. The device cannot come back once the broker has read that it is revoked.
"""

import asyncio
import datetime
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.broker_mode import BrokerPlace
from fleet.errors import ConfigError
from fleet.home import PkiPaths
from fleet.messaging.client import MqttClient
from fleet.messaging.credentials import client_context

__all__ = ["put_off"]

VALID_FOR: Final = datetime.timedelta(minutes=5)
CLOCKS_DIFFER_BY: Final = datetime.timedelta(minutes=5)


async def put_off(place: BrokerPlace, pki: PkiPaths, device_id: str) -> None:
    """End the open connection of a device, if it has one.

    Raises:
        ConfigError: the device CA is not in this fleet folder.
        BrokerError: the broker cannot be reached or refuses.
    """
    with _stand_in(pki, device_id) as (certificate, key):
        context = await asyncio.to_thread(client_context, pki, certificate, key)
        client = await MqttClient.connect(place.host, place.port, device_id, tls=context)
        await client.close()


@contextmanager
def _stand_in(pki: PkiPaths, device_id: str) -> Iterator[tuple[Path, Path]]:
    """Certificate and key for the device's name, in files, since TLS takes them from nowhere else."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(pki, device_id, key.public_key())
    with tempfile.TemporaryDirectory(prefix="muster-put-off-") as folder:  # for us alone (0700)
        paths = Path(folder) / "device.pem", Path(folder) / "device.key.pem"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        yield paths


def _signed(pki: PkiPaths, device_id: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
    try:
        ca = x509.load_pem_x509_certificate(pki.device_ca.read_bytes())
        ca_key = serialization.load_pem_private_key(pki.device_ca_key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the device CA in {pki.folder} cannot be used ({error}): put a device off on the host that has it"
        ) from error
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{pki.device_ca_key} must be an elliptic-curve key")
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)]))
        .issuer_name(ca.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER_BY)
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
