"""TLS on the HTTP side: the certificate that is shown, and the names it is for.

Rules kept here: TLS 1.3 alone; a certificate that is renewed on the disk is shown from the next connection on; one
that cannot be read leaves the one before in use.
"""

import logging
import ssl
from pathlib import Path
from typing import Final

from cryptography import x509

from fleet.errors import ConfigError

__all__ = ["LOOK_EVERY_S", "ServerTls"]

_LOG = logging.getLogger(__name__)
LOOK_EVERY_S: Final = 60.0


class ServerTls:
    """The context of a listener; ``names`` are lower-case host names and addresses."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises ConfigError: they are missing or no pair."""
        self._certificate, self._key = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.names: frozenset[str] = frozenset()
        self._seen: object = None
        self._load()

    def refresh(self) -> bool:
        """Take over a certificate that has changed on the disk; whether it has."""
        try:
            if self._stamp() == self._seen:
                return False
            self._load()
        except (ConfigError, OSError) as error:
            _LOG.error("the certificate of the API is not renewed: %s", error)
            return False
        _LOG.info("the API shows the renewed certificate %s", self._certificate)
        return True

    def _load(self) -> None:
        try:
            stamp = self._stamp()
            names = _names_in(self._certificate.read_bytes())
            self.context.load_cert_chain(self._certificate, self._key)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"[http] tls = true needs a certificate in {self._certificate} and its key in {self._key}: {error}. "
                "Make them, or set tls = false and stay on this machine"
            ) from error
        self.names, self._seen = names, stamp

    def _stamp(self) -> object:
        return [
            (found.st_mtime_ns, found.st_size, found.st_ino)
            for found in (self._certificate.stat(), self._key.stat())
        ]


def _names_in(pem: bytes) -> frozenset[str]:
    certificate = x509.load_pem_x509_certificates(pem)[0]
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("the certificate names no host (subjectAltName)") from None
    names = found.get_values_for_type(x509.DNSName)
    addresses = [str(one) for one in found.get_values_for_type(x509.IPAddress)]
    return frozenset(name.lower() for name in (*names, *addresses))
