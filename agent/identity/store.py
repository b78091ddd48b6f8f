"""The device's keys and certificates on disk.

Rules kept here:
- A key is on the disk before anybody is asked for its certificate, and the certificate before it is used.
- The pair in use is two files; the next pair lies whole beside it before the first of the two is put in place. What a
  power cut leaves between the two is put right by ``open_identity``, from the files alone.
- Asked for again after a cut, a certificate is asked for with the same key, so that the answer is the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from agent.errors import DeviceError
from agent.identity.certificate import (
    DeviceCertificate,
    new_key,
    parse_certificate,
    parse_key,
    public_der,
)
from agent.identity.errors import EnrolmentRefusedError, IdentityDamagedError
from agent.state_dir import IdentityPaths

__all__ = ["Disk", "IdentityInUse", "IdentityStore"]

_VERSION: Final = 1


class Disk(Protocol):
    """Durable changes: when one returns, a power cut cannot take it back. All raise DeviceError."""

    def make_folder(self, path: Path) -> object: ...

    def write(self, path: Path, content: bytes) -> None: ...

    def rename(self, source: Path, target: Path) -> None: ...

    def remove(self, path: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class IdentityInUse:
    """What the device shows. ``key_pem`` belongs to the certificate; ``server_ca``: whose servers it believes."""

    certificate: DeviceCertificate
    key_pem: bytes
    server_ca: bytes


class IdentityStore:
    """One device's identity. Blocking; used by one task at a time."""

    def __init__(self, paths: IdentityPaths, disk: Disk) -> None:
        self._paths = paths
        self._disk = disk

    def open_identity(self) -> IdentityInUse | None:
        """Put right what a power cut left, then the identity in use; None: the device is not enrolled.

        Raises:
            IdentityDamagedError: a file is there and cannot be used. DeviceError: the disk failed.
        """
        self._finish_swap()
        return self.read()

    def read(self) -> IdentityInUse | None:
        """The identity in use, nothing changed.

        Raises:
            IdentityDamagedError: a file is there and cannot be used.
        """
        pem = _read(self._paths.certificate)
        if pem is None:
            return None
        certificate = _certificate(self._paths.certificate, pem)
        key_pem = _read(self._paths.device_key)
        if (
            key_pem is None
            or public_der(_key(self._paths.device_key, key_pem)) != certificate.key_der
        ):
            raise IdentityDamagedError(
                str(self._paths.certificate), f"is not for the key in {self._paths.device_key.name}"
            )
        server_ca = _read(self._paths.server_ca)
        if server_ca is None:
            raise IdentityDamagedError(
                str(self._paths.certificate),
                f"is there, and {self._paths.server_ca.name} is missing",
            )
        return IdentityInUse(certificate, key_pem, server_ca)

    def identity_key(self) -> ec.EllipticCurvePrivateKey:
        """The long-lived key; made when there is none. Raises IdentityDamagedError, DeviceError."""
        return self._kept_key(self._paths.identity_key)

    def next_key(self) -> ec.EllipticCurvePrivateKey:
        """The key of the certificate to ask for: the one that was asked for before, else a new one.

        Raises:
            IdentityDamagedError: it is there and cannot be used. DeviceError: the disk failed.
        """
        return self._kept_key(self._paths.next_key)

    def install(self, chain: bytes, device_id: str, device_class: str) -> DeviceCertificate:
        """Put a certificate for ``next_key`` into use.

        Raises:
            EnrolmentRefusedError: it is for another device or another key. DeviceError: the disk failed.
        """
        try:
            certificate = parse_certificate(chain)
        except ValueError as error:
            raise EnrolmentRefusedError(
                f"the fleet manager's answer is no certificate of a device: {error}"
            ) from error
        name = certificate.name
        if (name.device_id, name.device_class) != (device_id, device_class):
            raise EnrolmentRefusedError(
                f"the fleet manager's certificate is for {name.uri}, this is {device_id} of class {device_class}"
            )
        if certificate.key_der != public_der(self.next_key()):
            raise EnrolmentRefusedError(
                "the fleet manager's certificate is not for the key asked for"
            )
        self._disk.write(self._paths.next_certificate, chain)
        self._finish_swap()
        return certificate

    def keep_server(self, server_ca: bytes, address: str) -> None:
        """Remember whose servers to believe, and where this device enrols. Raises DeviceError."""
        self._disk.make_folder(self._paths.folder)
        self._disk.write(self._paths.server_ca, server_ca)
        said = {"version": _VERSION, "server": address}
        self._disk.write(self._paths.enrolment, json.dumps(said).encode() + b"\n")

    def enrolled_at(self) -> str:
        """The address that this device enrolled at; "" when it is not known."""
        raw = _read(self._paths.enrolment)
        try:
            said: Any = json.loads(raw) if raw is not None else {}
        except ValueError:
            return ""
        server = said.get("server", "") if isinstance(said, Mapping) else ""
        return server if isinstance(server, str) else ""

    def _kept_key(self, path: Path) -> ec.EllipticCurvePrivateKey:
        pem = _read(path)
        if pem is None:
            pem = new_key()
            self._disk.make_folder(path.parent)
            self._disk.write(path, pem)
        return _key(path, pem)

    def _finish_swap(self) -> None:
        """The next pair is whole when its certificate is there: key first, then the certificate."""
        pem = _read(self._paths.next_certificate)
        if pem is None:
            return
        try:
            wanted = parse_certificate(pem).key_der
        except ValueError:
            self._disk.remove(self._paths.next_certificate)  # asked for again, with the same key
            return
        if self._is_key_of(self._paths.next_key, wanted):
            self._disk.rename(self._paths.next_key, self._paths.device_key)
        if self._is_key_of(self._paths.device_key, wanted):
            self._disk.rename(self._paths.next_certificate, self._paths.certificate)
        else:
            self._disk.remove(self._paths.next_certificate)

    def _is_key_of(self, path: Path, wanted: bytes) -> bool:
        pem = _read(path)
        try:
            return pem is not None and public_der(parse_key(pem)) == wanted
        except ValueError:
            return False


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceError(
            f"cannot read {path}: {error.strerror or error}. Run as the agent's user."
        ) from error


def _key(path: Path, pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        return parse_key(pem)
    except ValueError as error:
        raise IdentityDamagedError(str(path), f"is no private key: {error}") from error


def _certificate(path: Path, pem: bytes) -> DeviceCertificate:
    try:
        return parse_certificate(pem)
    except ValueError as error:
        raise IdentityDamagedError(str(path), f"is no certificate of a device: {error}") from error
