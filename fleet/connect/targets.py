"""Where webhooks go: the configuration with its secrets read, checked once at the start."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fleet.connect.event_types import EVENT_TYPES
from fleet.connect.settings import WebhookConfig
from fleet.connect.signature import parse_secrets
from fleet.errors import ConfigError

__all__ = ["Target", "load_targets"]

_OTHERS_MAY_READ: Final = 0o007
_MAX_SECRET_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """One webhook. ``events`` are the types it is told, never empty."""

    name: str
    url: str
    secrets: tuple[bytes, ...] = field(repr=False)
    events: tuple[str, ...]
    timeout_s: float
    link: str = ""


def load_targets(home: Path, configured: Sequence[WebhookConfig]) -> tuple[Target, ...]:
    """The webhooks with their secrets; a file without a folder is in ``home``.

    Raises:
        ConfigError: a secret cannot be read, is none, or everyone on this machine may read it.
    """
    return tuple(_target(home, one) for one in configured)


def _target(home: Path, one: WebhookConfig) -> Target:
    path = home / one.secret_file
    where = f"[[webhook]] {one.name} secret_file {path}"
    try:
        mode = path.stat().st_mode
        with path.open("rb") as stream:
            raw = stream.read(_MAX_SECRET_BYTES)
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror}): put the secret there") from (
            error
        )
    if mode & _OTHERS_MAY_READ:
        raise ConfigError(f"{where} is open to everyone on this machine: chmod 600 it")
    secrets = parse_secrets(raw.decode("utf-8", errors="replace"), where)
    return Target(one.name, one.url, secrets, one.events or EVENT_TYPES, one.timeout_s, one.link)
