"""The fleet manager as a client of a broker that asks for certificates.

Rules kept here: the files are read anew for each connection; TLS 1.3, and the broker's certificate is checked against
the server CA and the name it is reached by; what is missing is named, with what makes it.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.errors import ConfigError
from fleet.home import PkiPaths
from fleet.messaging.signatures import AckSigner

__all__ = ["ManagerCredentials", "Session", "client_context"]

Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Session:
    """What one connection uses. ``stamp``: of the files it was read from."""

    tls: ssl.SSLContext
    acks: AckSigner
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class ManagerCredentials:
    """The fleet manager's certificate for brokers, in the fleet folder."""

    pki: PkiPaths
    fleet: str

    def stamp(self) -> Stamp:
        """Changes when a file does. Raises ConfigError when one is missing."""
        try:
            found = [
                path.stat() for path in (self.pki.manager, self.pki.manager_key, self.pki.server_ca)
            ]
        except OSError as error:
            raise ConfigError(
                f"a broker over TLS needs {error.filename}: {error.strerror}. "
                "`fleet tls init` makes the certificates of a fleet"
            ) from error
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)

    def load(self) -> Session:
        """Read the files.

        Raises:
            ConfigError: one is missing or cannot be used.
        """
        stamp = self.stamp()
        pki = self.pki
        context = client_context(pki, pki.manager, pki.manager_key)
        try:
            key = serialization.load_pem_private_key(pki.manager_key.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(pki.manager.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{pki.manager_key} cannot be used: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{pki.manager_key} must be an elliptic-curve key")
        der = certificate.public_bytes(serialization.Encoding.DER)
        return Session(context, AckSigner(self.fleet, key, der), stamp)


def client_context(pki: PkiPaths, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 to a server that the server CA signed, showing ``certificate`` (paths of PEM files).

    Raises:
        ConfigError: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(pki.server_ca)
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{certificate} with its key, or {pki.server_ca}, cannot be used for TLS: {error}"
        ) from error
    return context
