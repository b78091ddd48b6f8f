"""The fleet's certificates on disk: two authorities, the servers' certificates, the fleet manager's, and the CRL.

Rules kept here: nothing here is the root of the signed metadata, so who takes this host can pose as the fleet manager
and its devices but not sign a bundle; an authority's key is never overwritten; a key lies on the disk before the
certificate that needs it, so a stop between two files is mended by doing it again; what expires is renewed when less
than a third of its life is left.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleet.errors import ConfigError, ServerError
from fleet.home import PkiPaths
from fleet.registry.authority import (
    Authority,
    Wanted,
    certificate_pem,
    key_pem,
    load_authority,
    load_certificate,
    make_authority,
    new_key,
)
from fleet.repository.files import write_durable
from protos.topics import MANAGER

__all__ = ["CRL_LIFE_S", "init_pki", "renew_servers", "require_pki", "server_names"]

DAY_S: Final = 86_400.0
AUTHORITY_LIFE_S: Final = 20 * 365 * DAY_S
SERVER_LIFE_S: Final = 90 * DAY_S
CRL_LIFE_S: Final = 30 * DAY_S
BACKDATED_S: Final = DAY_S
"""How far a device's clock may be behind and still believe a new server certificate."""
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class _End:
    """A certificate of ours: where it lies, what it is called, who signs it."""

    certificate: Path
    key: Path
    common_name: str
    by_device_ca: bool = False


def _ends(paths: PkiPaths) -> tuple[_End, ...]:
    return (
        _End(paths.server, paths.server_key, "muster-server"),
        _End(paths.broker, paths.broker_key, "muster-broker"),
        _End(paths.manager, paths.manager_key, MANAGER, by_device_ca=True),
    )


def init_pki(paths: PkiPaths, fleet: str, names: Sequence[str], now_s: float) -> tuple[str, ...]:
    """Make what is missing, and anew the servers' certificates whose names are others; the names of the files made.

    Args:
        paths: where everything is to lie.
        fleet: its name goes into the authorities' names.
        names: hosts by which the servers are reached; this machine's own are added. None: those in use stay.
        now_s: seconds since the epoch.

    Raises:
        ConfigError: an authority that is there cannot be read. ServerError: the disk is full or not writable.
    """
    try:
        paths.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ServerError(f"cannot make {paths.folder}: {error.strerror or error}") from error
    made = [
        *_make_authority(paths.server_ca, paths.server_ca_key, f"{fleet} server CA", now_s),
        *_make_authority(paths.device_ca, paths.device_ca_key, f"{fleet} device CA", now_s),
    ]
    made += renew_servers(paths, names, now_s)
    if not paths.revoked.exists():
        device_ca = load_authority(paths.device_ca, paths.device_ca_key)
        write_durable(paths.revoked, device_ca.revocations((), now_s, now_s + CRL_LIFE_S))
        made.append(paths.revoked.name)
    return tuple(made)


def require_pki(paths: PkiPaths) -> None:
    """Raises ConfigError: certificates are missing; says what makes them."""
    needed = (paths.server_ca, paths.device_ca, paths.device_ca_key, paths.server, paths.server_key)
    missing = [path.name for path in needed if not path.exists()]
    if missing:
        raise ConfigError(
            f"[grpc] tls = true needs certificates, and {', '.join(missing)} is missing in {paths.folder}: "
            "run `fleet tls init`"
        )


def renew_servers(paths: PkiPaths, names: Sequence[str], now_s: float) -> tuple[str, ...]:
    """Make those of our own certificates that are missing, about to expire, or of other names; which were made.

    Raises:
        ConfigError: an authority cannot be read. ServerError: the disk is full or not writable.
    """
    made = []
    for end in _ends(paths):
        wanted = () if end.by_device_ca else _all_names(names, server_names(end.certificate))
        if not _is_due(end.certificate, end.key, wanted, now_s):
            continue
        if end.by_device_ca:
            authority = load_authority(paths.device_ca, paths.device_ca_key)
        else:
            authority = load_authority(paths.server_ca, paths.server_ca_key)
        _make_end(end, authority, wanted, now_s)
        made.append(end.certificate.name)
    return tuple(made)


def server_names(certificate: Path) -> tuple[str, ...]:
    """Host names and addresses in a certificate that is there; none where there is none or it cannot be read."""
    try:
        loaded = load_certificate(certificate)
    except ConfigError:
        return ()  # it is made anew
    try:
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    hosts: list[str] = list(names.get_values_for_type(x509.DNSName))
    return (*hosts, *(str(one) for one in names.get_values_for_type(x509.IPAddress)))


def _all_names(given: Sequence[str], present: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*LOCAL_NAMES, *(given or present))))


def _make_authority(certificate: Path, key: Path, name: str, now_s: float) -> list[str]:
    if certificate.exists():
        load_authority(
            certificate, key
        )  # what devices trust is never replaced, and never half there
        return []
    if key.exists():
        # The process stopped between the two files: no certificate of this key was ever given to anybody.
        key.unlink()
    authority = make_authority(name, now_s - BACKDATED_S, AUTHORITY_LIFE_S)
    write_durable(key, key_pem(authority.key), mode=0o600)
    write_durable(certificate, authority.pem)
    return [certificate.name]


def _make_end(end: _End, authority: Authority, names: Sequence[str], now_s: float) -> None:
    key = _end_key(end.key)
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if end.by_device_ca else ExtendedKeyUsageOID.SERVER_AUTH
    certificate = authority.issue(
        Wanted(
            common_name=end.common_name,
            names=[_general_name(name) for name in names] or [x509.DNSName(end.common_name)],
            usages=[usage],
            public_key=key.public_key(),
            not_before_s=now_s - BACKDATED_S,
            not_after_s=now_s + SERVER_LIFE_S,
        )
    )
    # Whoever connects first sees the authority too: a device with a token knows it by its fingerprint.
    write_durable(end.certificate, certificate_pem(certificate) + authority.pem)


def _end_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key that is there, or a new one: a key and its certificate are two files, and never of two pairs."""
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if isinstance(found, ec.EllipticCurvePrivateKey):
            return found
    except (OSError, ValueError, TypeError):
        pass  # missing or damaged: nothing but the certificate that is made next depends on it
    key = new_key()
    write_durable(path, key_pem(key), mode=0o600)
    return key


def _is_due(certificate: Path, key: Path, names: Sequence[str], now_s: float) -> bool:
    if not certificate.exists() or not key.exists():
        return True
    try:
        loaded = load_certificate(certificate)
    except ConfigError:
        return True
    start_s, end_s = loaded.not_valid_before_utc.timestamp(), loaded.not_valid_after_utc.timestamp()
    others = bool(names) and set(server_names(certificate)) != set(names)
    return others or end_s - now_s < (end_s - start_s) / 3


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
