"""What a world is made of, as a TOML file parsed once into frozen values.

Rules: an unknown key is refused with the nearest known one; every number has a unit in its name and
a range; rates are shares of one. A scenario says nothing about time of day or process: the same
scenario and seed give every device the same character.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypeVar

from simulator.errors import ScenarioError

__all__ = [
    "Devices",
    "FleetAddress",
    "ModelBehaviour",
    "Network",
    "Run",
    "Scenario",
    "Traffic",
    "TrialFault",
    "behaviour_of",
    "load_scenario",
    "packaged_scenarios",
    "parse_scenario",
]

MAX_SCENARIO_BYTES: Final = 256 * 1024
MAX_DEVICES: Final = 20_000
NAME: Final = re.compile(r"[a-z0-9-]{1,34}")
TrialFault: Final = ("ok", "crash", "golden", "memory")

_Section = TypeVar("_Section")


def _number(
    default: float, doc: str, *, least: float = 0.0, most: float = 1e9, key: str = ""
) -> Any:
    return field(default=default, metadata={"doc": doc, "least": least, "most": most, "key": key})


def _text(default: str, doc: str, *, key: str = "") -> Any:
    return field(default=default, metadata={"doc": doc, "key": key})


@dataclass(frozen=True, slots=True)
class FleetAddress:
    """``[fleet]``: where the fleet manager is; every empty field is taken from its run.json."""

    name: str = _text("", "name of the fleet")
    http: str = _text("", "host:port of the operators' HTTP API; only shown")
    grpc: str = _text("", "host:port of the device service")
    mqtt: str = _text("", "host:port of the broker")
    root: str = _text("", "path to the fleet's root.json")


@dataclass(frozen=True, slots=True)
class Devices:
    """``[devices]``: how many there are and what they say they are."""

    count: int = _number(10, "how many devices", least=1, most=MAX_DEVICES)
    prefix: str = _text("sim-", "device ids are the prefix and a number")
    device_class: str = _text("edge", "the class every device has", key="class")
    hardware: str = _text("x86_64", "machine architecture every device claims")
    labels: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict,
        metadata={"doc": "label = value, or a list of which each device gets one by the seed"},
    )
    providers: str = _text(
        "cpu", "execution providers, parted by commas, of which each device has one by the seed"
    )
    ramp_s: float = _number(2.0, "devices connect spread over this time", most=3600)
    seed: int = _number(
        1, "everything drawn by chance follows from it and the device id", most=2**31
    )

    def ids(self) -> tuple[str, ...]:
        """Every device id, ``sim-0001`` on: equally wide, so that they sort."""
        width = max(4, len(str(self.count)))
        return tuple(f"{self.prefix}{number:0{width}}" for number in range(1, self.count + 1))


@dataclass(frozen=True, slots=True)
class Run:
    """``[run]``: how long, and how often a device reports."""

    duration_s: float = _number(0.0, "end after this time; 0 is until SIGTERM", most=30 * 86400)
    window_s: float = _number(60.0, "length of a telemetry window", least=0.1, most=86400)
    cohort_window_s: float = _number(
        10.0, "the same while a deployment is under way", least=0.1, most=86400
    )
    agent_version: str = _text("", "the agent version devices claim; empty is this one")
    onnxruntime_version: str = _text("1.32.0", "the onnxruntime version devices claim")


@dataclass(frozen=True, slots=True)
class Traffic:
    """``[traffic]``: the requests every active model answers."""

    requests_per_s: float = _number(5.0, "requests a second, model and device", most=1e6)
    jitter: float = _number(0.2, "share by which a window's requests vary", most=1.0)


@dataclass(frozen=True, slots=True)
class Network:
    """``[network]``: what lies between a device and its fleet manager."""

    piece_bytes_per_s: float = _number(
        0.0, "how fast pieces arrive; 0 is as fast as they come", most=1e12
    )
    piece_loss_rate: float = _number(
        0.0, "chance that the stream of pieces breaks at a chunk", most=1.0
    )
    disconnect_per_hour: float = _number(
        0.0, "broken broker connections an hour and device", most=3600
    )
    offline_s: float = _number(5.0, "how long a device is gone after one", most=86400)
    report_loss_rate: float = _number(
        0.0, "chance that a batch of reports is lost on its way", most=1.0
    )


@dataclass(frozen=True, slots=True)
class ModelBehaviour:
    """One ``[[model]]``: how bundles that match it behave. The first that matches counts."""

    model: str = _text("*", "glob over the model's name")
    version: str = _text("*", "glob over its version")
    device_class: str = _text("*", "glob over its device class", key="class")
    latency_ms: float = _number(5.0, "median latency of a request", least=0.001, most=600_000)
    latency_spread: float = _number(0.3, "sigma of the log-normal latency", most=5.0)
    error_rate: float = _number(0.0, "share of requests that fail", most=1.0)
    over_objective_rate: float = _number(0.0, "share slower than the objective", most=1.0)
    output_violation_rate: float = _number(0.0, "share of answers outside the contract", most=1.0)
    non_finite_rate: float = _number(0.0, "share of answers with NaN or infinity", most=1.0)
    disagreement_rate: float = _number(
        0.0, "share of a shadow's answers that differ from the active version's", most=1.0
    )
    trial: str = field(
        default="ok", metadata={"doc": "how its trial ends", "choices": TrialFault, "key": ""}
    )
    trial_rate: float = _number(1.0, "share of the devices on which it ends so", most=1.0)
    crash_after_s: float = _number(
        -1.0,
        "the model server dies this long after the swap; 0 is while loading, -1 never",
        least=-1.0,
        most=86400,
    )
    crash_rate: float = _number(1.0, "share of the devices on which it dies", most=1.0)
    silent_after_commit: bool = field(
        default=False, metadata={"doc": "devices report the commit and then nothing more"}
    )
    silent_rate: float = _number(1.0, "share of the devices that fall silent", most=1.0)
    load_ms: float = _number(20.0, "how long loading takes", most=600_000)

    def matches(self, model: str, version: str, device_class: str) -> bool:
        return (
            fnmatchcase(model, self.model)
            and fnmatchcase(version, self.version)
            and fnmatchcase(device_class, self.device_class)
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole scenario file."""

    fleet: FleetAddress = field(default_factory=FleetAddress)
    devices: Devices = field(default_factory=Devices)
    run: Run = field(default_factory=Run)
    traffic: Traffic = field(default_factory=Traffic)
    network: Network = field(default_factory=Network)
    models: tuple[ModelBehaviour, ...] = ()

    def changed(
        self, *, count: int | None = None, duration_s: float | None = None, seed: int | None = None
    ) -> "Scenario":
        """This scenario with what the command line says instead, checked the same way.

        Raises:
            ScenarioError: a value is out of range.
        """
        devices = self.devices
        if count is not None:
            devices = replace(
                devices, count=_in_range(count, _field(Devices, "count"), "--devices")
            )
        if seed is not None:
            devices = replace(devices, seed=_in_range(seed, _field(Devices, "seed"), "--seed"))
        run = self.run
        if duration_s is not None:
            known = _field(Run, "duration_s")
            run = replace(run, duration_s=_in_range(duration_s, known, "--duration"))
        return replace(self, devices=devices, run=run)


def behaviour_of(
    behaviours: Sequence[ModelBehaviour], model: str, version: str, device_class: str
) -> ModelBehaviour:
    """The first behaviour that matches a bundle; a well-behaved one when none does."""
    for behaviour in behaviours:
        if behaviour.matches(model, version, device_class):
            return behaviour
    return ModelBehaviour()


# --- parsing --------------------------------------------------------------------------------------


def packaged_scenarios() -> dict[str, Path]:
    """The scenarios that come with the simulator, by name."""
    folder = Path(__file__).parent / "scenarios"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_scenario(name: str) -> Scenario:
    """Read a scenario file, or one of the packaged scenarios by its name.

    Raises:
        ScenarioError: no such file, not TOML, or something in it is wrong.
    """
    path = Path(name)
    if not path.exists():
        packaged = packaged_scenarios()
        if name not in packaged:
            raise ScenarioError(
                f"there is no scenario file {name}, and the packaged scenarios are "
                f"{', '.join(packaged)}: give a path or one of these names."
            )
        path = packaged[name]
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_SCENARIO_BYTES + 1)
    except OSError as error:
        raise ScenarioError(f"the scenario {name} cannot be read: {error.strerror}.") from error
    if len(raw) > MAX_SCENARIO_BYTES:
        raise ScenarioError(f"the scenario {name} is larger than {MAX_SCENARIO_BYTES} bytes.")
    try:
        return parse_scenario(raw.decode())
    except UnicodeDecodeError as error:
        raise ScenarioError(f"the scenario {name} is not UTF-8 text.") from error
    except ScenarioError as error:
        raise ScenarioError(f"scenario {name}: {error}") from error


def parse_scenario(text: str) -> Scenario:
    """A scenario from TOML text.

    Raises:
        ScenarioError: not TOML, an unknown key, a wrong type or a value out of range.
    """
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ScenarioError(f"not valid TOML: {error}") from error
    _known(raw, ("fleet", "devices", "run", "traffic", "network", "model"), "the scenario")
    scenario = Scenario(
        fleet=_section(FleetAddress, raw.get("fleet", {}), "[fleet]"),
        devices=_section(Devices, raw.get("devices", {}), "[devices]"),
        run=_section(Run, raw.get("run", {}), "[run]"),
        traffic=_section(Traffic, raw.get("traffic", {}), "[traffic]"),
        network=_section(Network, raw.get("network", {}), "[network]"),
        models=_behaviours(raw.get("model", [])),
    )
    for name, value in (
        ("prefix", scenario.devices.prefix),
        ("class", scenario.devices.device_class),
    ):
        if NAME.fullmatch(value) is None:
            raise ScenarioError(
                f"[devices] {name} = {value!r} is not 1 to 34 of the characters a-z, 0-9 and -."
            )
    return scenario


def _behaviours(raw: object) -> tuple[ModelBehaviour, ...]:
    if not isinstance(raw, list):
        raise ScenarioError("[model] is a list: write [[model]], once for each behaviour.")
    return tuple(
        _section(ModelBehaviour, entry, f"[[model]] number {number}")
        for number, entry in enumerate(raw, start=1)
    )


def _section(kind: Callable[..., _Section], raw: object, where: str) -> _Section:
    if not isinstance(raw, dict):
        raise ScenarioError(f"{where} is not a table.")
    by_key = {_key(known): known for known in fields(kind)}  # type: ignore[arg-type]
    _known(raw, tuple(by_key), where)
    values = {
        by_key[key].name: _value(value, by_key[key], f"{where} {key}") for key, value in raw.items()
    }
    return kind(**values)


def _known(raw: Mapping[str, object], known: Sequence[str], where: str) -> None:
    for key in raw:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        raise ScenarioError(f"{where} has the unknown key {key!r}: {hint}")


def _value(value: object, known: Field[Any], where: str) -> object:
    if known.name == "labels":
        return _labels(value, where)
    default = known.default
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ScenarioError(f"{where} = {value!r} is not true or false.")
        return value
    if isinstance(default, str):
        return _chosen(value, known, where)
    return _in_range(value, known, where)


def _chosen(value: object, known: Field[Any], where: str) -> str:
    if not isinstance(value, str):
        raise ScenarioError(f"{where} = {value!r} is not a text.")
    choices = known.metadata.get("choices")
    if choices is not None and value not in choices:
        raise ScenarioError(f"{where} = {value!r} is not one of {', '.join(choices)}.")
    return value


def _in_range(value: Any, known: Field[Any], where: str) -> Any:
    wanted = int if isinstance(known.default, int) else float
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScenarioError(f"{where} = {value!r} is not a number.")
    if wanted is int and not isinstance(value, int):
        raise ScenarioError(f"{where} = {value!r} is not a whole number.")
    least, most = known.metadata["least"], known.metadata["most"]
    if not math.isfinite(value) or not least <= value <= most:
        raise ScenarioError(f"{where} = {value!r} is not between {least:g} and {most:g}.")
    return wanted(value)


def _labels(value: object, where: str) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise ScenarioError(f"{where} is not a table of label = value.")
    labels: dict[str, tuple[str, ...]] = {}
    for label, given in value.items():
        values = given if isinstance(given, list) else [given]
        if not values or not all(isinstance(one, str) for one in values):
            raise ScenarioError(f"{where}.{label} = {given!r} is not a text or a list of texts.")
        labels[label] = tuple(values)
    return labels


def _key(known: Field[Any]) -> str:
    return known.metadata.get("key") or known.name


def _field(kind: type[Any], name: str) -> Field[Any]:
    return next(known for known in fields(kind) if known.name == name)
