"""What a world is made of, as a TOML file parsed once into frozen values.

Rules: an unknown key is refused with the nearest known one; every number has a unit in its name and
a range; rates are shares of one. A scenario says nothing about time of day or process: the same
scenario and seed give every device the same character.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from simulator.chance import one_of
from simulator.errors import ScenarioError
from simulator.fields import field_of, in_range, keys_of, known_keys, number, section, text
from simulator.virtual.settings import Candidate, Incident, Population

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
    "described",
    "load_scenario",
    "packaged_scenarios",
    "parse_scenario",
    "scenario_text",
]

MAX_SCENARIO_BYTES: Final = 256 * 1024
MAX_DEVICES: Final = 20_000
NAME: Final = re.compile(r"[a-z0-9-]{1,34}")
TrialFault: Final = ("ok", "crash", "golden", "memory")


@dataclass(frozen=True, slots=True)
class FleetAddress:
    """``[fleet]``: where the fleet manager is; every empty field is taken from its run.json."""

    name: str = text("", "name of the fleet")
    http: str = text("", "host:port of the operators' HTTP API; only shown")
    grpc: str = text("", "host:port of the device service")
    mqtt: str = text("", "host:port of the broker")
    root: str = text("", "path to the fleet's root.json")


@dataclass(frozen=True, slots=True)
class Devices:
    """``[devices]``: how many there are and what they say they are."""

    count: int = number(10, "how many devices", least=1, most=MAX_DEVICES)
    prefix: str = text("sim-", "device ids are the prefix and a number")
    device_class: str = text("edge", "the class every device has", key="class")
    hardware: str = text("x86_64", "machine architecture every device claims")
    labels: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict,
        metadata={"doc": "label = value, or a list of which each device gets one by the seed"},
    )
    providers: str = text(
        "cpu", "execution providers, parted by commas, of which each device has one by the seed"
    )
    ramp_s: float = number(2.0, "devices connect spread over this time", most=3600)
    seed: int = number(
        1, "everything drawn by chance follows from it and the device id", most=2**31
    )

    def ids(self) -> tuple[str, ...]:
        """Every device id, ``sim-0001`` on: equally wide, so that they sort."""
        width = max(4, len(str(self.count)))
        return tuple(f"{self.prefix}{number:0{width}}" for number in range(1, self.count + 1))

    def provider(self, device_id: str) -> str:
        """The execution provider that this device has."""
        names = tuple(name.strip() for name in self.providers.split(","))
        return one_of(names, self.seed, device_id, "provider") or "cpu"


@dataclass(frozen=True, slots=True)
class Run:
    """``[run]``: how long, and how often a device reports."""

    time: str = text(
        "real", "virtual: devices are statistics and no time passes", choices=("real", "virtual")
    )
    duration_s: float = number(
        0.0,
        "end after this time; 0 is until SIGTERM (virtual: until the rollout has ended)",
        most=30 * 86400,
    )
    window_s: float = number(60.0, "length of a telemetry window", least=0.1, most=86400)
    cohort_window_s: float = number(
        10.0, "the same while a deployment is under way", least=0.1, most=86400
    )
    agent_version: str = text("", "the agent version devices claim; empty is this one")
    onnxruntime_version: str = text("1.32.0", "the onnxruntime version devices claim")
    rollout: str = text("", "virtual: the text of a rollout.toml; empty is a rollout's defaults")


@dataclass(frozen=True, slots=True)
class Traffic:
    """``[traffic]``: the requests every active model answers."""

    requests_per_s: float = number(5.0, "requests a second, model and device", most=1e6)
    jitter: float = number(0.2, "share by which a window's requests vary", most=1.0)


@dataclass(frozen=True, slots=True)
class Network:
    """``[network]``: what lies between a device and its fleet manager."""

    piece_bytes_per_s: float = number(
        0.0, "how fast pieces arrive; 0 is as fast as they come", most=1e12
    )
    piece_loss_rate: float = number(
        0.0, "chance that the stream of pieces breaks at a chunk", most=1.0
    )
    disconnect_per_hour: float = number(
        0.0, "broken broker connections an hour and device", most=3600
    )
    offline_s: float = number(5.0, "how long a device is gone after one", most=86400)
    report_loss_rate: float = number(
        0.0, "chance that a batch of reports is lost on its way", most=1.0
    )


@dataclass(frozen=True, slots=True)
class ModelBehaviour:
    """One ``[[model]]``: how bundles that match it behave. The first that matches counts."""

    model: str = text("*", "glob over the model's name")
    version: str = text("*", "glob over its version")
    device_class: str = text("*", "glob over its device class", key="class")
    provider: str = text("*", "glob over the execution provider of the device")
    latency_ms: float = number(5.0, "median latency of a request", least=0.001, most=600_000)
    latency_spread: float = number(0.3, "sigma of the log-normal latency", most=5.0)
    error_rate: float = number(0.0, "share of requests that fail", most=1.0)
    over_objective_rate: float = number(0.0, "share slower than the objective", most=1.0)
    output_violation_rate: float = number(0.0, "share of answers outside the contract", most=1.0)
    non_finite_rate: float = number(0.0, "share of answers with NaN or infinity", most=1.0)
    feedback_share: float = number(0.0, "share of answers that are told right or wrong", most=1.0)
    wrong_rate: float = number(0.0, "share of wrong answers among those", most=1.0)
    outputs: Mapping[str, float] = field(
        default_factory=dict,
        metadata={"doc": "label = share of the answers, adding up to 1; none are counted without"},
    )
    disagreement_rate: float = number(
        0.0, "share of a shadow's answers that differ from the active version's", most=1.0
    )
    trial: str = text("ok", "how its trial ends", choices=TrialFault)
    trial_rate: float = number(1.0, "share of the devices on which it ends so", most=1.0)
    crash_after_s: float = number(
        -1.0,
        "the model server dies this long after the swap; 0 is while loading, -1 never",
        least=-1.0,
        most=86400,
    )
    crash_rate: float = number(1.0, "share of the devices on which it dies", most=1.0)
    silent_after_commit: bool = field(
        default=False, metadata={"doc": "devices report the commit and then nothing more"}
    )
    silent_rate: float = number(1.0, "share of the devices that fall silent", most=1.0)
    load_ms: float = number(20.0, "how long loading takes", most=600_000)

    def matches(self, bundle: tuple[str, str, str], provider: str) -> bool:
        """Whether it is about this bundle (model, version, class) on a device with this provider."""
        globs = (self.model, self.version, self.device_class, self.provider)
        return all(map(fnmatchcase, (*bundle, provider), globs))


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole scenario file."""

    fleet: FleetAddress = field(default_factory=FleetAddress)
    devices: Devices = field(default_factory=Devices)
    run: Run = field(default_factory=Run)
    traffic: Traffic = field(default_factory=Traffic)
    network: Network = field(default_factory=Network)
    models: tuple[ModelBehaviour, ...] = ()
    population: Population = field(default_factory=Population)
    candidate: Candidate = field(default_factory=Candidate)
    incident: Incident = field(default_factory=Incident)

    @property
    def is_virtual(self) -> bool:
        """Whether its devices are statistics under a clock that nobody waits for."""
        return self.run.time == "virtual"

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
                devices, count=in_range(count, field_of(Devices, "count"), "--devices")
            )
        if seed is not None:
            devices = replace(devices, seed=in_range(seed, field_of(Devices, "seed"), "--seed"))
        run = self.run
        if duration_s is not None:
            known = field_of(Run, "duration_s")
            run = replace(run, duration_s=in_range(duration_s, known, "--duration"))
        return replace(self, devices=devices, run=run)


def behaviour_of(
    behaviours: Sequence[ModelBehaviour], bundle: tuple[str, str, str], provider: str = "cpu"
) -> ModelBehaviour:
    """The first behaviour that matches a bundle (model, version, class) on a device with this provider.

    A well-behaved one when none does.
    """
    for behaviour in behaviours:
        if behaviour.matches(bundle, provider):
            return behaviour
    return ModelBehaviour()


# --- parsing --------------------------------------------------------------------------------------


def packaged_scenarios() -> dict[str, Path]:
    """The scenarios that come with the simulator, by name."""
    folder = Path(__file__).parent / "scenarios"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def scenario_text(name: str) -> str:
    """The text of a scenario file, or of one of the packaged scenarios by its name.

    Raises:
        ScenarioError: no such file, too large, or not UTF-8.
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
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ScenarioError(f"the scenario {name} is not UTF-8 text.") from error


def load_scenario(name: str) -> Scenario:
    """Read a scenario file, or one of the packaged scenarios by its name.

    Raises:
        ScenarioError: no such file, not TOML, or something in it is wrong.
    """
    text_of = scenario_text(name)
    try:
        return parse_scenario(text_of)
    except ScenarioError as error:
        raise ScenarioError(f"scenario {name}: {error}") from error


_TABLES: Final[Mapping[str, type[Any]]] = {
    "fleet": FleetAddress,
    "devices": Devices,
    "run": Run,
    "traffic": Traffic,
    "network": Network,
    "population": Population,
    "candidate": Candidate,
    "incident": Incident,
}
_REAL_ONLY: Final = ("fleet", "traffic", "network", "model")
_VIRTUAL_ONLY: Final = ("population", "candidate", "incident")
_SECTIONS: Final = (*_TABLES, "model")


def parse_scenario(text: str) -> Scenario:
    """A scenario from TOML text.

    Raises:
        ScenarioError: not TOML, an unknown key, a wrong type or a value out of range.
    """
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ScenarioError(f"not valid TOML: {error}") from error
    known_keys(raw, tuple(_SECTIONS), "the scenario")
    parts = {name: section(kind, raw.get(name, {}), f"[{name}]") for name, kind in _TABLES.items()}
    scenario = Scenario(**parts, models=_behaviours(raw.get("model", [])))
    _check_time(scenario, raw)
    for name, value in (
        ("prefix", scenario.devices.prefix),
        ("class", scenario.devices.device_class),
    ):
        if NAME.fullmatch(value) is None:
            raise ScenarioError(
                f"[devices] {name} = {value!r} is not 1 to 34 of the characters a-z, 0-9 and -."
            )
    return scenario


def described() -> dict[str, list[tuple[str, str, str]]]:
    """Key, default and meaning of everything a scenario can say, by the table it stands in."""
    tables = {f"[{name}]": keys_of(kind) for name, kind in _TABLES.items()}
    return {**tables, "[[model]]": keys_of(ModelBehaviour)}


def _check_time(scenario: Scenario, raw: Mapping[str, object]) -> None:
    """What only one of the two kinds of time knows must not be there with the other."""
    time, wrong = scenario.run.time, _REAL_ONLY if scenario.is_virtual else _VIRTUAL_ONLY
    other = "real" if scenario.is_virtual else "virtual"
    for name in wrong:
        if name in raw:
            raise ScenarioError(
                f'[{name}] is for [run] time = "{other}", and this scenario has time = "{time}".'
            )
    if scenario.run.rollout and not scenario.is_virtual:
        raise ScenarioError('[run] rollout is for time = "virtual".')


def _behaviours(raw: object) -> tuple[ModelBehaviour, ...]:
    if not isinstance(raw, list):
        raise ScenarioError("[model] is a list: write [[model]], once for each behaviour.")
    return tuple(
        section(ModelBehaviour, entry, f"[[model]] number {number}")
        for number, entry in enumerate(raw, start=1)
    )
