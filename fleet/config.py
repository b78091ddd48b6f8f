"""The fleet manager's configuration: ``fleet.toml`` in its folder.

Rules kept here: the dataclasses below are the whole truth (keys, types, defaults and their
meaning), the example is printed from them; an unknown key is refused with the nearest known one;
every address is on loopback, but for the API with TLS, and where devices show certificates.
"""

import dataclasses
import difflib
import re
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import agent.errors
from agent.trust.loopback import require_loopback
from fleet.broker_mode import check_embedded_host, parse_broker_mode
from fleet.connect.settings import WebhookConfig, check_webhooks
from fleet.errors import ConfigError
from fleet.operators.settings import HttpConfig, OperatorsConfig
from fleet.registry.settings import (
    ACCEPT,
    EnrolmentConfig,
    GrpcConfig,
    TlsConfig,
    check_host_names,
)

__all__ = [
    "BrokerConfig",
    "ControllerConfig",
    "EnrolmentConfig",
    "FleetConfig",
    "GrpcConfig",
    "IngestConfig",
    "KeysConfig",
    "Listen",
    "ListenConfig",
    "LogConfig",
    "NameConfig",
    "TlsConfig",
    "check_fleet_name",
    "example_config",
    "load_config",
    "parse_address",
    "parse_config",
    "parse_grpc_listen",
    "parse_http_listen",
    "parse_listen",
]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_LEVELS: Final = ("debug", "info", "warning", "error")
_FORMATS: Final = ("text", "json")
_MAX_CONFIG_BYTES: Final = 256 * 1024
_MAX_PORT: Final = 65535
_MAX_KEEP_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen. Port 0: any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether nobody beyond this machine reaches it."""
        try:
            require_loopback(self.host, "address")
        except agent.errors.ConfigError:
            return False
        return True


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, slots=True)
class NameConfig:
    name: str = _doc("fleet", "the fleet's name, part of every topic: a-z, 0-9 and '-'")


@dataclass(frozen=True, slots=True)
class ListenConfig:
    listen: str = _doc("127.0.0.1:0", "address and port, on loopback; port 0 takes a free one")


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    mode: str = _doc(
        "embedded",
        "embedded: a broker of its own on this machine, for up to about 1,000 devices. "
        '"mqtt://HOST:PORT": any MQTT 5 broker on this machine. "mqtts://HOST:PORT": one anywhere, over '
        "mutual TLS, see docs/broker.md. none: devices use gRPC alone",
    )
    listen: str = _doc("127.0.0.1:8472", "where the embedded broker listens, on loopback")


@dataclass(frozen=True, slots=True)
class KeysConfig:
    rollout: str = _doc(
        "",
        "the key that signs directives, where it is not keys/rollout.pem: a file, or a key on a token as "
        "pkcs11:token=NAME;id=%01?module-path=LIBRARY",
    )
    snapshot: str = _doc("", "the same for the key of the snapshot")
    timestamp: str = _doc("", "the same for the key of the timestamp")
    secret_file: str = _doc(
        "", "file whose first line is their password or PIN; by default $MUSTER_KEY_PASSWORD"
    )


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    tick_s: float = _doc(1.0, "how often the controller looks at the rollouts under way")


@dataclass(frozen=True, slots=True)
class IngestConfig:
    queued_batches: int = _doc(1024, "reports waiting to be stored; who brings more has to wait")
    commit_reports: int = _doc(2000, "most reports stored in one transaction")
    keep_windows_days: int = _doc(
        30,
        "telemetry windows are deleted when they came in so many days ago. What a rollout under way "
        "still looks at stays, and so does the newest window of each device",
    )
    keep_events_days: int = _doc(
        365, "the same for the steps of deployments; those of a rollout under way stay"
    )


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: str = _doc("info", f"one of {', '.join(_LEVELS)}")
    format: str = _doc("text", "text for people, json for machines: one object a line")


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """Everything in fleet.toml."""

    fleet: NameConfig = field(
        default_factory=NameConfig,
        metadata={"doc": "who this is"},
    )
    http: HttpConfig = field(
        default_factory=HttpConfig,
        metadata={"doc": "the API for people: command line, browser"},
    )
    grpc: GrpcConfig = field(
        default_factory=GrpcConfig,
        metadata={"doc": "the service for devices"},
    )
    tls: TlsConfig = field(
        default_factory=TlsConfig,
        metadata={"doc": "certificates of the servers, see docs/identity.md"},
    )
    enrolment: EnrolmentConfig = field(
        default_factory=EnrolmentConfig,
        metadata={"doc": "how devices come by certificates"},
    )
    broker: BrokerConfig = field(
        default_factory=BrokerConfig,
        metadata={"doc": "how messages reach the devices"},
    )
    keys: KeysConfig = field(
        default_factory=KeysConfig,
        metadata={
            "doc": "where the keys lie that the fleet manager signs with, see docs/rotation.md"
        },
    )
    controller: ControllerConfig = field(
        default_factory=ControllerConfig,
        metadata={"doc": "advances and rolls back rollouts"},
    )
    ingest: IngestConfig = field(
        default_factory=IngestConfig,
        metadata={"doc": "takes in what devices report"},
    )
    operators: OperatorsConfig = field(
        default_factory=OperatorsConfig,
        metadata={"doc": "what people may do, see docs/operators.md"},
    )
    log: LogConfig = field(
        default_factory=LogConfig,
        metadata={"doc": "what is written to stderr"},
    )
    webhook: tuple[WebhookConfig, ...] = field(
        default=(),
        metadata={"doc": "told what becomes of rollouts; once for each, see docs/webhooks.md"},
    )

    def check(self) -> "FleetConfig":
        """Return this configuration when every value is one that can be used.

        Raises:
            ConfigError: names the key, the value, and what would be right.
        """
        check_fleet_name(self.fleet.name)
        parse_http_listen(self.http)
        parse_grpc_listen(self.grpc.listen, "[grpc] listen", tls=self.grpc.tls)
        parse_grpc_listen(self.enrolment.listen, "[enrolment] listen", tls=self.grpc.tls)
        check_host_names(self.tls.names, "[tls] names")
        _require_one_of("[enrolment] accept", self.enrolment.accept, ACCEPT)
        _require_range(
            "[enrolment] certificate_days", self.enrolment.certificate_days, 1 / 1440, 90
        )
        _require_range("[enrolment] per_minute", self.enrolment.per_minute, 1, 1_000_000)
        _require_range(
            "[enrolment] per_peer_per_minute", self.enrolment.per_peer_per_minute, 1, 1_000_000
        )
        parse_listen(self.broker.listen, "[broker] listen", check_embedded_host)
        parse_broker_mode(self.broker.mode)
        _require_range("[controller] tick_s", self.controller.tick_s, 0.05, 3600)
        _require_range(
            "[operators] second_approval_above_percent",
            self.operators.second_approval_above_percent,
            0,
            100,
        )
        _require_range("[ingest] queued_batches", self.ingest.queued_batches, 1, 100_000)
        _require_range("[ingest] commit_reports", self.ingest.commit_reports, 1, 100_000)
        _require_range(
            "[ingest] keep_windows_days", self.ingest.keep_windows_days, 1, _MAX_KEEP_DAYS
        )
        _require_range("[ingest] keep_events_days", self.ingest.keep_events_days, 1, _MAX_KEEP_DAYS)
        _require_one_of("[log] level", self.log.level, _LEVELS)
        _require_one_of("[log] format", self.log.format, _FORMATS)
        check_webhooks(self.webhook)
        return self


def load_config(path: Path) -> FleetConfig:
    """Read and check ``fleet.toml``.

    Raises:
        ConfigError: it cannot be read, is not TOML, or says something that cannot be used.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}). `fleet init` makes a fleet folder."
        ) from error
    if len(raw) > _MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes: not a fleet.toml")
    try:
        return parse_config(raw.decode("utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error


def parse_config(text: str) -> FleetConfig:
    """Parse and check the text of a ``fleet.toml``.

    Raises:
        ConfigError: as for ``load_config``.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}") from error
    sections = {one.name: one for one in dataclasses.fields(FleetConfig)}
    _refuse_unknown(raw, sections, "section")
    default = FleetConfig()
    parsed = {name: _parse_any(getattr(default, name), raw[name], name) for name in raw}
    return dataclasses.replace(default, **parsed).check()


def example_config(name: str = "fleet") -> str:
    """A documented fleet.toml with every key at its default."""
    config = FleetConfig(fleet=NameConfig(name))
    lines = ["# Configuration of the fleet manager. Every key may be left out.", ""]
    for section in dataclasses.fields(config):
        lines += _comment(section.metadata["doc"])
        values = getattr(config, section.name)
        # One that may be there any number of times is not there by default.
        lines += _commented_webhook() if values == () else _section_lines(section.name, values)
        lines.append("")
    return "\n".join(lines)


def _section_lines(name: str, values: Any) -> list[str]:
    lines = [f"[{name}]"]
    for key in dataclasses.fields(values):
        lines += _comment(key.metadata["doc"])
        lines.append(f"{key.name} = {_toml_value(getattr(values, key.name))}")
    return lines


def _commented_webhook() -> list[str]:
    lines = ["# [[webhook]]"]
    for key in dataclasses.fields(WebhookConfig):
        lines += textwrap.wrap(
            key.metadata["doc"], 84, initial_indent="#   # ", subsequent_indent="#   # "
        )
        lines.append(f"# {key.name} = {_toml_value(key.default)}")
    return lines


def parse_listen(text: str, what: str, check_host: Callable[[str], str] | None = None) -> Listen:
    """``HOST:PORT`` on loopback, or wherever ``check_host`` says.

    Raises:
        ConfigError: it is anything else; the message names ``what``.
    """
    found = parse_address(text, what)
    if check_host is not None:
        check_host(found.host)
        return found
    try:
        require_loopback(found.host, what)
    except agent.errors.ConfigError as error:
        raise ConfigError(str(error)) from error
    return found


def parse_grpc_listen(text: str, what: str, *, tls: bool) -> Listen:
    """``HOST:PORT`` where devices connect: anywhere with TLS, else on loopback.

    Raises:
        ConfigError: it is anything else; the message names ``what``.
    """
    if tls:
        return parse_address(text, what)
    try:
        return parse_listen(text, what)
    except ConfigError as error:
        hint = " For devices elsewhere: run `fleet tls init`, then set [grpc] tls = true."
        is_foreign = "loopback" in str(error)
        raise ConfigError(f"{error}{hint if is_foreign else ''}") from error


def parse_http_listen(http: HttpConfig) -> Listen:
    """Where the API listens: on loopback, or anywhere with TLS.

    Raises:
        ConfigError: it is no address, or beyond this machine without TLS.
    """
    listen = parse_address(http.listen, "[http] listen")
    if not http.tls and not listen.is_loopback:
        raise ConfigError(
            f"[http] listen = {http.listen!r} is not a loopback address: tokens would cross the network unencrypted. "
            "Set [http] tls = true and make a token with `fleet token create`, or use 127.0.0.1, ::1 or localhost"
        )
    return listen


def parse_address(text: str, what: str) -> Listen:
    """``HOST:PORT``, wherever that is.

    Raises:
        ConfigError: it is anything else; the message names ``what``.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > _MAX_PORT:
        raise ConfigError(f"{what} = {text!r} is no address: use HOST:PORT like 127.0.0.1:8470")
    return Listen(host.strip("[]"), int(port))


def check_fleet_name(name: str) -> str:
    """Return ``name`` when a fleet may be called that.

    Raises:
        ConfigError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"[fleet] name = {name!r} is not allowed: use up to 40 of a-z, 0-9 and '-', "
            "starting with a letter or digit"
        )
    return name


S = TypeVar("S")


def _parse_any(default: Any, raw: object, name: str) -> Any:
    """A section, or a list of them where the default is a list of none."""
    if default != ():
        return _parse_section(default, raw, f"[{name}]")
    if not isinstance(raw, list):
        raise ConfigError(f"[{name}] must be written [[{name}]], once for each")
    return tuple(_parse_webhook(one, f"[[{name}]] {number}") for number, one in enumerate(raw, 1))


def _parse_webhook(raw: object, where: str) -> WebhookConfig:
    """What an example shows for the first three keys is no default."""
    parsed = _parse_section(WebhookConfig(), raw, where)
    assert isinstance(raw, Mapping)  # it was parsed
    for key in ("name", "url", "secret_file"):
        if key not in raw:
            raise ConfigError(
                f"{where} has no {key}: set it, for example to {getattr(parsed, key)}"
            )
    return parsed


def _parse_section(default: S, raw: object, where: str) -> S:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} must be a table of keys, not {raw!r:.60}")
    known = {one.name: one for one in dataclasses.fields(default)}  # type: ignore[arg-type]
    _refuse_unknown(raw, known, "key", where)
    values = {
        key: _typed(value, type(getattr(default, key)), f"{where} {key}")
        for key, value in raw.items()
    }
    return dataclasses.replace(default, **values)  # type: ignore[type-var]


def _typed(value: object, kind: type, what: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if kind is tuple and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    names = {
        tuple: "a list of texts",
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    raise ConfigError(f"{what} = {value!r:.60} must be {names[kind]}")


def _refuse_unknown(
    raw: Mapping[str, object], known: Mapping[str, object], kind: str, where: str = ""
) -> None:
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where} unknown {kind} {key!r}; {hint}".strip())


def _require_range(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # also refuses NaN
        raise ConfigError(f"{what} = {value:g} must lie between {least:g} and {most:g}")


def _require_one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} = {value!r} must be one of {', '.join(allowed)}")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 88, initial_indent="# ", subsequent_indent="# ")


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(one) for one in value) + "]"
    return str(value)
