"""The agent's configuration: one TOML file, every key documented where it is declared.

Rules kept here:
- Every address is on this machine (``agent.trust.require_loopback``), but the fleet manager's and the broker's where
  this device shows a certificate ([fleet] tls, ``mqtts://``).
- Names that end up in topics, paths and certificates are checked here, once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.config_file import Check, key, read_sections, read_toml, section_example
from agent.errors import ConfigError
from agent.runtime.providers import DEFAULT_PROVIDERS, check_names
from agent.trust.loopback import require_loopback

__all__ = [
    "AgentConfig",
    "BrokerAddress",
    "DeviceSection",
    "FleetSection",
    "HealthSection",
    "LogSection",
    "ServingSection",
    "TelemetrySection",
    "UpdateSection",
    "example_toml",
    "load_config",
    "parse_address",
    "parse_any_address",
    "parse_broker",
]

_NAME: Final = re.compile(r"[a-z0-9-]{1,40}")
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9._-]{1,40}")
_MAX_LABELS: Final = 32
_MAX_LABEL_CHARS: Final = 128
_MAX_SOCKET_BYTES: Final = 107
_RESERVED_LABELS: Final = frozenset({"class", "hardware", "id"})


def parse_address(address: str, what: str) -> tuple[str, int]:
    """Host and port of ``host:port``, both checked; ``what`` names the key in messages.

    Raises:
        ConfigError: it is not an address, or not one on this machine.
    """
    host, port = parse_any_address(address, what)
    return require_loopback(host, what), port


def parse_any_address(address: str, what: str) -> tuple[str, int]:
    """Host and port of ``host:port``, wherever that is; ``what`` names the key in messages.

    Raises:
        ConfigError: it is not an address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(
            f"{what} = {address!r} is not an address: write host:port, like 127.0.0.1:8471"
        )
    return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """``tls``: mutual TLS, with the certificate that enrolment gave this device."""

    host: str
    port: int
    tls: bool


def parse_broker(address: str, what: str) -> BrokerAddress:
    """The broker at ``host:port``, on this machine, or at ``mqtts://host:port``, anywhere.

    Raises:
        ConfigError: it is not an address, or one beyond this machine and without TLS.
    """
    scheme, _, rest = address.rpartition("://")
    if scheme == "mqtts":
        host, _, port = rest.rpartition(":")
        if not _HOST.fullmatch(host) or not port.isdecimal() or not 0 < int(port) <= 65535:
            raise ConfigError(
                f"{what} = {address!r} is not an address: write mqtts://host:port, like mqtts://broker.example:8883"
            )
        return BrokerAddress(host.strip("[]"), int(port), tls=True)
    if scheme not in {"", "mqtt"}:
        raise ConfigError(f"{what} = {address!r} must begin with mqtt:// or mqtts://")
    try:
        host, number = parse_address(rest, what)
    except ConfigError as error:
        raise ConfigError(
            f"{error} A broker elsewhere is spoken to over TLS: mqtts://host:port, see docs/broker.md."
        ) from error
    return BrokerAddress(host, number, tls=False)


def _checked_name(value: str, where: str) -> str:
    if not _NAME.fullmatch(value):
        raise ConfigError(f"{where} = {value!r} must be 1 to 40 of a-z, 0-9 and '-'")
    return value


def _checked_address(value: str, where: str) -> str:
    parse_address(value, where)
    return _checked_any_address(value, where)


def _checked_any_address(value: str, where: str) -> str:
    parse_any_address(value, where)
    if value.endswith(":0"):
        raise ConfigError(f"{where} = {value!r} needs the port the other side listens on")
    return value


def _checked_broker(value: str, where: str) -> str:
    if value and not parse_broker(value, where).port:
        raise ConfigError(f"{where} = {value!r} needs the port the other side listens on")
    return value


def _checked_listen(value: str, where: str) -> str:
    parse_address(value, where)
    return value


def _checked_optional_listen(value: str, where: str) -> str:
    return _checked_listen(value, where) if value else value


def _checked_socket(value: str, where: str) -> str:
    if not value:
        return value
    if not value.startswith("/") or "\0" in value:
        raise ConfigError(
            f"{where} = {value!r} must be an absolute path, like /run/muster/oip.sock"
        )
    if len(value.encode()) > _MAX_SOCKET_BYTES:
        raise ConfigError(
            f"{where} = {value!r} is longer than the {_MAX_SOCKET_BYTES} bytes that a unix socket's path may have"
        )
    return value


def _checked_labels(value: Mapping[str, str], where: str) -> Mapping[str, str]:
    if len(value) > _MAX_LABELS:
        raise ConfigError(f"{where} has {len(value)} labels, at most {_MAX_LABELS} are allowed")
    for name, text in value.items():
        if not _LABEL_KEY.fullmatch(name) or name in _RESERVED_LABELS:
            raise ConfigError(
                f"{where}: {name!r} cannot be a label: use 1 to 40 of A-Z, a-z, 0-9, '.', '_' and '-', "
                f"and none of {', '.join(sorted(_RESERVED_LABELS))}"
            )
        if len(text) > _MAX_LABEL_CHARS:
            raise ConfigError(
                f"{where}: {name} has {len(text)} characters, at most {_MAX_LABEL_CHARS}"
            )
    return value


def _one_of(*allowed: str) -> Check:
    def check(value: str, where: str) -> str:
        if value not in allowed:
            raise ConfigError(f"{where} = {value!r} must be one of: {', '.join(allowed)}")
        return value

    return check


@dataclass(frozen=True, slots=True)
class DeviceSection:
    id: str = key(
        "Name of this device, unique in the fleet: 1 to 40 of a-z, 0-9 and '-'.",
        example="cam-001",
        check=_checked_name,
    )
    device_class: str = key(
        "Kind of device; bundles are built for one class: 1 to 40 of a-z, 0-9 and '-'.",
        example="camera",
        check=_checked_name,
        name="class",
    )
    labels: Mapping[str, str] = key(
        "What a rollout may select this device by.",
        default={},
        example={"site": "north"},
        check=_checked_labels,
    )
    state_dir: Path = key(  # noqa: RUF009 (it is dataclasses.field with the documentation filled in)
        "Where the agent keeps its state: models, journal, spool. One agent a folder.",
        default=Path("/var/lib/muster-agent"),
    )


@dataclass(frozen=True, slots=True)
class FleetSection:
    name: str = key(
        "Name of the fleet, as 'fleet init --name' was given.", example="demo", check=_checked_name
    )
    root: Path = key(  # noqa: RUF009 (as above)
        "The fleet's first root.json ('fleet init' writes it): what this device trusts before anything else.",
        example="/etc/muster/root.json",
    )
    grpc: str = key(
        "Address of the fleet manager's device service; on this machine, unless tls is true.",
        default="127.0.0.1:8471",
        check=_checked_any_address,
    )
    tls: bool = key(
        "Show the certificate that 'fleet-agent enroll' brought, and believe only this fleet's servers.",
        default=False,
    )
    mqtt: str = key(
        'Address of the MQTT 5 broker: "host:port" on this machine, "mqtts://host:port" anywhere, over mutual TLS\n'
        'with this device\'s certificate; "" for a site without one: gRPC alone is complete.',
        default="127.0.0.1:8472",
        check=_checked_broker,
    )
    refresh_s: float = key(
        "How often signed metadata is fetched over gRPC as well, seconds: catches a broker that withholds it.",
        default=4 * 3600.0,
        least=10,
        most=86400,
    )
    fallback_after_s: float = key(
        "How long the broker may be away before gRPC takes over, seconds.",
        default=10.0,
        least=0,
        most=3600,
    )


@dataclass(frozen=True, slots=True)
class ServingSection:
    listen: str = key(
        "Where models answer the Open Inference Protocol over gRPC; port 0 picks a free one.",
        default="127.0.0.1:8473",
        check=_checked_listen,
    )
    http: str = key(
        'Where they answer it over REST; port 0 picks a free one, "" switches it off.',
        default="127.0.0.1:8474",
        check=_checked_optional_listen,
    )
    grpc_unix: str = key(
        'Path of a unix socket for gRPC as well, in a folder of the agent\'s; "" for none.',
        default="",
        check=_checked_socket,
    )
    grpc_front: str = key(
        'What answers gRPC: "http2", our own and faster, or "grpcio", the library of that name.',
        default="http2",
        check=_one_of("http2", "grpcio"),
    )
    providers: tuple[str, ...] = key(
        "Execution providers of onnxruntime that models run on, in this order. Nothing else is ever used\n"
        "in their place: the agent does not start where one is not available.",
        default=DEFAULT_PROVIDERS,
        check=check_names,
    )
    http_unix: str = key(
        'Path of a unix socket for REST as well; "" for none.',
        default="",
        check=_checked_socket,
    )
    confine: bool = key(
        "Whether the model server gives up what it does not need: other files than its bundles, other programs,\n"
        "connections to anybody. What the kernel cannot take away stays; 'fleet-agent doctor' says what.",
        default=True,
    )


@dataclass(frozen=True, slots=True)
class TelemetrySection:
    window_s: float = key(
        "Length of a telemetry window, seconds; also how often the fleet hears that all is well.",
        default=60.0,
        least=1,
        most=3600,
    )
    cohort_window_s: float = key(
        "Length of a window while this device is in a stage or among those it is compared with.",
        default=15.0,
        least=1,
        most=3600,
    )
    spool_reports: int = key(
        "How many reports wait for the fleet manager; above it the oldest windows are merged.",
        default=2000,
        least=50,
        most=1_000_000,
    )
    spool_bytes: int = key(
        "How many bytes of reports wait for the fleet manager.",
        default=4 * 1024 * 1024,
        least=256 * 1024,
        most=1024**3,
    )


@dataclass(frozen=True, slots=True)
class UpdateSection:
    memory_reserve_bytes: int = key(
        "Memory that loading a new version beside the running one leaves free; where that does not fit,\n"
        "the old version is unloaded first.",
        default=64 * 1024 * 1024,
        least=0,
    )
    hold_s: float = key(
        "How long requests wait for a model whose only version is being replaced, seconds; then they are refused.",
        default=30.0,
        least=1,
        most=60,
    )
    reserve_bytes: int = key(
        "Disk space that a download leaves free.",
        default=64 * 1024 * 1024,
        least=0,
    )
    trial_timeout_s: float = key(
        "How long the trial of a new bundle may take, seconds of wall clock.",
        default=180.0,
        least=1,
        most=3600,
    )
    start_timeout_s: float = key(
        "How long the model server may take to start, seconds.",
        default=60.0,
        least=1,
        most=600,
    )


@dataclass(frozen=True, slots=True)
class HealthSection:
    max_rss_bytes: int = key(
        "Most memory that agent and model server may hold together; a bundle on probation that goes above it is "
        "reverted. Two versions are loaded during a swap. 0: no limit.",
        default=0,
        least=0,
    )
    max_cpu_percent: float = key(
        "Most processor time of agent and model server, percent of one core. 0: no limit.",
        default=0.0,
        least=0,
    )
    max_temperature_c: float = key(
        "Highest temperature of the device, degrees Celsius. 0: no limit.",
        default=0.0,
        least=0,
        most=200,
    )
    min_disk_free_bytes: int = key(
        "Least room on the disk of the state folder. 0: no limit.",
        default=0,
        least=0,
    )
    sustained_s: float = key(
        "How long a limit must be crossed without a break before it is reported, seconds.",
        default=60.0,
        least=0,
        most=86400,
    )
    crash_window_s: float = key(
        "How long a crash of the model server counts against the bundle that ran, seconds.",
        default=600.0,
        least=1,
        most=86400,
    )
    max_crashes: int = key(
        "Crashes within that time after which an installed bundle is left for the one before it.",
        default=2,
        least=1,
        most=100,
    )
    rest_s: float = key(
        "How long agent and model server must have had nothing to do before they give memory back, seconds. "
        "0: never.",
        default=20.0,
        least=0,
        most=86400,
    )


@dataclass(frozen=True, slots=True)
class LogSection:
    level: str = key(
        "debug, info, warning or error.",
        default="info",
        check=_one_of("debug", "info", "warning", "error"),
    )
    format: str = key(
        '"text" for people, "json" for one JSON object a line.',
        default="text",
        check=_one_of("text", "json"),
    )


@dataclass(frozen=True, slots=True)
class AgentConfig:
    device: DeviceSection
    fleet: FleetSection
    serving: ServingSection
    telemetry: TelemetrySection
    update: UpdateSection
    health: HealthSection
    log: LogSection


_SECTIONS: Final[Mapping[str, type]] = {
    "device": DeviceSection,
    "fleet": FleetSection,
    "serving": ServingSection,
    "telemetry": TelemetrySection,
    "update": UpdateSection,
    "health": HealthSection,
    "log": LogSection,
}


def load_config(path: Path) -> AgentConfig:
    """The configuration in ``path``, checked.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, missing or wrong; the message says which.
    """
    path = path.expanduser().absolute()
    tables = read_toml(path)
    config = AgentConfig(**read_sections(tables, path, _SECTIONS))
    if not config.fleet.tls:
        _require_local(config.fleet.grpc, f"{path}: [fleet] grpc")
    return config


def _require_local(address: str, where: str) -> None:
    try:
        parse_address(address, where)
    except ConfigError as error:
        raise ConfigError(
            f"{error} Elsewhere the device needs a certificate: run `fleet-agent enroll` with [fleet] tls = true."
        ) from error


def example_toml() -> str:
    """A documented configuration; the keys that are not commented out must be given."""
    head = "# Configuration of a Muster agent. Keys that are commented out show their default or an example.\n"
    return "\n".join([head, *(section_example(name, kind) for name, kind in _SECTIONS.items())])
