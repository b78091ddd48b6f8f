"""The settings of enrolment and certificates in fleet.toml: ``[grpc]``, ``[tls]`` and ``[enrolment]``.

Rules kept here: a name that goes into a certificate is a host name or an address and nothing else.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fleet.errors import ConfigError

__all__ = ["ACCEPT", "EnrolmentConfig", "GrpcConfig", "TlsConfig", "check_host_names"]

ACCEPT: Final = ("token", "manual")
MAX_NAMES: Final = 32
_HOST: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, slots=True)
class GrpcConfig:
    listen: str = _doc(
        "127.0.0.1:8471",
        "address and port; on loopback, unless tls is true. Port 0 takes a free one",
    )
    tls: bool = _doc(
        False,
        "devices show certificates and are shown the server's; `fleet tls init` makes what that needs",
    )


@dataclass(frozen=True, slots=True)
class TlsConfig:
    names: tuple[str, ...] = _doc(
        (),
        "host names and addresses by which devices, brokers and people reach this host, for the servers' "
        "certificates; without, those that `fleet tls init --name` was given",
    )


@dataclass(frozen=True, slots=True)
class EnrolmentConfig:
    listen: str = _doc(
        "127.0.0.1:8475",
        "where devices without a certificate enrol, with [grpc] tls; only the server shows one there",
    )
    accept: str = _doc(
        "token",
        "token: a good token is enough. manual: an operator accepts each device as well",
    )
    certificate_days: float = _doc(7.0, "how long a device's certificate is good")
    per_minute: int = _doc(600, "most requests to enrol, of all devices together")
    per_peer_per_minute: int = _doc(60, "the same, from one address")


def check_host_names(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Return ``names`` when each can stand in a server's certificate.

    Raises:
        ConfigError: one cannot; the message names ``what``.
    """
    if len(names) > MAX_NAMES:
        raise ConfigError(f"{what} has {len(names)} names, at most {MAX_NAMES} fit a certificate")
    for name in names:
        if not _HOST.fullmatch(name) and not _is_address(name):
            raise ConfigError(
                f"{what} has {name[:80]!r}, which is no host name and no address: write one like "
                "fleet.example.com or 10.0.0.7, without a port"
            )
    return tuple(names)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
