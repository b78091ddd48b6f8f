"""What ``[broker]`` in fleet.toml says about the broker: whose it is, and whether it may be beyond this machine.

Rules kept here: without TLS nothing goes beyond loopback; the embedded broker never does, and who asks for more is told
the two ways there are.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import agent.errors
from agent.trust.loopback import require_loopback
from fleet.errors import ConfigError

__all__ = ["BrokerPlace", "check_embedded_host", "parse_broker_mode"]

_WANTED: Final = '"embedded", "none", "mqtt://HOST:PORT" or "mqtts://HOST:PORT"'
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_TWO_WAYS: Final = (
    "The embedded broker has neither mutual TLS nor rules for topics, so it never leaves this machine. For devices "
    'elsewhere there are two ways: a broker of your own ([broker] mode = "mqtts://HOST:PORT"; `fleet broker config` '
    'writes Mosquitto\'s configuration), or gRPC alone ([broker] mode = "none").'
)


@dataclass(frozen=True, slots=True)
class BrokerPlace:
    """A broker that others run."""

    host: str
    port: int
    tls: bool


def parse_broker_mode(mode: str) -> BrokerPlace | None:
    """Where an external broker is; None for ``embedded`` and ``none``.

    Raises:
        ConfigError: the mode is unknown, or its address is beyond this machine and without TLS.
    """
    if mode in {"embedded", "none"}:
        return None
    try:
        parts = urlsplit(mode)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise ConfigError(f"[broker] mode = {mode!r} is no address ({error}): {_WANTED}") from error
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.username:
        raise ConfigError(f"[broker] mode = {mode!r} is not known: use {_WANTED}")
    host, tls = parts.hostname, parts.scheme == "mqtts"
    if not _HOST.fullmatch(host):
        raise ConfigError(f"[broker] mode = {mode!r}: {host!r} is no host name: use {_WANTED}")
    if not tls:
        try:
            require_loopback(host, "[broker] mode")
        except agent.errors.ConfigError as error:
            raise ConfigError(
                f"[broker] mode = {mode!r}: {host!r} is not a loopback address, and without TLS nothing leaves this "
                f"machine: use mqtts://{host}:{_PORTS['mqtts']}, see docs/broker.md"
            ) from error
    return BrokerPlace(host, port, tls)


def check_embedded_host(host: str) -> str:
    """Return ``host``, where the embedded broker may listen.

    Raises:
        ConfigError: it is beyond this machine; says what there is instead.
    """
    try:
        return require_loopback(host, "[broker] listen")
    except agent.errors.ConfigError as error:
        raise ConfigError(
            f"[broker] listen = {host!r} is not a loopback address. {_TWO_WAYS}"
        ) from error
