"""How a device is named in its certificate, what its identity key signs, and the form of a token: one truth for both.

Rules kept here: pure; every part of a name is checked before it is put together or believed.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

__all__ = [
    "MAX_CSR_BYTES",
    "NAME",
    "DeviceName",
    "Token",
    "enrol_message",
    "lapsed_message",
]

NAME: Final = re.compile(r"[a-z0-9-]{1,40}")
"""A device id, a device class, and the name of a fleet."""
MAX_CSR_BYTES: Final = 4096
_URI: Final = re.compile(
    rf"spiffe://({NAME.pattern})/class/({NAME.pattern})/device/({NAME.pattern})"
)
_TOKEN: Final = re.compile(r"muster1\.([A-Za-z0-9_-]{20,80})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class DeviceName:
    """Who a certificate is for; its URI is the certificate's only alternative name."""

    fleet: str
    device_class: str
    device_id: str

    @property
    def uri(self) -> str:
        return f"spiffe://{self.fleet}/class/{self.device_class}/device/{self.device_id}"

    @classmethod
    def parse(cls, uri: str) -> "DeviceName":
        """The name in a certificate's URI.

        Raises:
            ValueError: it is not of this form.
        """
        found = _URI.fullmatch(uri)
        if found is None:
            raise ValueError(f"{uri[:200]!r} is not spiffe://FLEET/class/CLASS/device/ID")
        return cls(*found.groups())


@dataclass(frozen=True, slots=True)
class Token:
    """What an operator hands to a device once: a secret, and by which key it knows the right server.

    ``server_sha256``: SHA-256 of the server CA's SubjectPublicKeyInfo (DER), lower-case hex.
    """

    secret: str
    server_sha256: str

    @property
    def text(self) -> str:
        return f"muster1.{self.secret}.{self.server_sha256}"

    @property
    def sha256(self) -> str:
        """What the fleet manager keeps of the secret, hex."""
        return sha256(self.secret.encode()).hexdigest()

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The parts of a token's text.

        Raises:
            ValueError: it is not a token; the message does not repeat it.
        """
        found = _TOKEN.fullmatch(text.strip())
        if found is None:
            raise ValueError("it does not have the form muster1.SECRET.FINGERPRINT")
        return cls(*found.groups())


def enrol_message(device_id: str, csr: bytes) -> bytes:
    """What the identity key signs to enrol: this key and this request belong together."""
    return b"muster-enrol-v1\0" + device_id.encode() + b"\0" + csr


def lapsed_message(device_id: str, nonce: bytes, csr: bytes) -> bytes:
    """What the identity key signs to renew a certificate that has expired."""
    return b"muster-renew-lapsed-v1\0" + device_id.encode() + b"\0" + nonce + b"\0" + csr
