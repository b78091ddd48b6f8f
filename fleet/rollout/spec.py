"""What an operator asks for: one bundle, to which devices, in which stages, under which guards.

Rules kept here: a spec is complete and checked before anything starts; a guard that could never
say no is refused, so a rollout is never without a gate; unknown keys are refused by name.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fleet.errors import RequestError
from fleet.rollout.reading import Reader

__all__ = [
    "ALL_BP",
    "MIN_COVERAGE",
    "Guards",
    "RolloutSpec",
    "SpecLimits",
    "Stage",
    "bundle_class",
    "parse_duration",
    "parse_percent",
    "parse_spec",
    "selectors_overlap",
    "spec_from_toml",
]

ALL_BP: Final = 10_000  # basis points: 100 %
MIN_COVERAGE: Final = 0.8  # share of the reachable cohort that must have committed and reported
_BUNDLE: Final = re.compile(r"bundles/([a-z0-9-]{1,40})/([a-z0-9][a-z0-9-]{0,62})-([\w.-]{1,64})")
_LABEL_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_SECONDS: Final[Mapping[str, float]] = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class SpecLimits:
    """How large a spec may be."""

    max_stages: int = 20
    max_labels: int = 16
    max_label_chars: int = 64
    max_bake_s: float = 30 * 86_400.0
    max_toml_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class Stage:
    """A share of the fleet, and how long it runs before the next one."""

    percent_bp: int
    bake_s: float

    @property
    def percent(self) -> str:
        """``12.5 %`` for people."""
        return f"{self.percent_bp / 100:g} %"


@dataclass(frozen=True, slots=True)
class Guards:
    """Absolute limits. A rate is a share (0.05 = 5 %); None switches that one limit off.

    ``min_installs`` devices must have finished before their failure rate is judged (fewer when
    the cohort is smaller), ``min_requests`` requests on ``min_devices`` devices before a rate of
    requests is. A device that serves the bundle and sends nothing for ``silence_s`` has failed.
    """

    max_install_failure_rate: float | None = 0.1
    min_installs: int = 10
    max_error_rate: float | None = 0.05
    max_over_latency_rate: float | None = 0.2
    max_output_violation_rate: float | None = 0.05
    min_requests: int = 50
    min_devices: int = 1
    silence_s: float = 300.0

    def rates(self) -> tuple[float | None, ...]:
        """The limits on what a bundle does once it serves."""
        return (self.max_error_rate, self.max_over_latency_rate, self.max_output_violation_rate)


DEFAULT_STAGES: Final = (Stage(1000, 600.0), Stage(5000, 600.0), Stage(ALL_BP, 600.0))


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """One rollout, as asked for. ``selector`` is sorted by key; empty means every device.

    ``model`` may be empty in what an operator sends: it is then the bundle's.
    """

    model: str
    bundle: str
    stages: tuple[Stage, ...] = DEFAULT_STAGES
    selector: tuple[tuple[str, str], ...] = ()
    guards: Guards = field(default_factory=Guards)
    strategy: str = "canary"
    install_deadline_s: float = 3600.0

    def to_json(self) -> dict[str, Any]:
        """What is stored and sent; ``parse_spec`` reads it back."""
        return {
            "model": self.model,
            "bundle": self.bundle,
            "strategy": self.strategy,
            "stages": [{"percent_bp": s.percent_bp, "bake_s": s.bake_s} for s in self.stages],
            "selector": dict(self.selector),
            "guards": {name: getattr(self.guards, name) for name in Guards.__dataclass_fields__},
            "install_deadline_s": self.install_deadline_s,
        }


def bundle_class(bundle: str) -> str:
    """The device class in a bundle path ``bundles/CLASS/MODEL-VERSION``.

    Raises:
        RequestError: it is no such path.
    """
    found = _BUNDLE.fullmatch(bundle)
    if found is None:
        raise RequestError(
            f"bundle {bundle!r} is no bundle path: write it as bundles/CLASS/MODEL-VERSION, "
            "as `fleet bundle list` shows it"
        )
    return found.group(1)


def selectors_overlap(one: tuple[tuple[str, str], ...], other: tuple[tuple[str, str], ...]) -> bool:
    """Whether a device can match both: only when no key is asked to have two values."""
    wanted = dict(one)
    return all(wanted.get(key, value) == value for key, value in other)


def parse_duration(text: str, what: str) -> float:
    """Seconds in ``90``, ``90s``, ``10m``, ``1.5h`` or ``1d``. Raises RequestError."""
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        raise RequestError(f"{what} = {text!r} is no duration: write 90s, 10m, 1.5h or 1d")
    return float(found.group(1)) * _SECONDS[found.group(2) or "s"]


def parse_percent(text: str, what: str) -> int:
    """Basis points in ``10``, ``10%`` or ``0.5 %``. Raises RequestError."""
    try:
        percent = float(text.strip().removesuffix("%").strip())
    except ValueError:
        percent = -1.0
    basis_points = round(percent * 100) if 0 < percent <= 100 else 0
    if basis_points < 1:
        raise RequestError(
            f"{what} = {text!r} is no percentage: write a number above 0 and up to 100, "
            "in steps of 0.01, like 10 or 0.5%"
        )
    return basis_points


def spec_from_toml(text: str, limits: SpecLimits | None = None, bundle: str = "") -> RolloutSpec:
    """A rollout.toml: as the JSON form, with ``[[stage]]`` tables of ``percent`` and ``bake``.

    ``bundle`` stands in for the one in the file.

    Raises:
        RequestError: it is no TOML, or not a valid rollout.
    """
    limits = limits or SpecLimits()
    if len(text.encode()) > limits.max_toml_bytes:
        raise RequestError(f"the rollout file is larger than {limits.max_toml_bytes} bytes")
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"the rollout file is no valid TOML: {error}") from error
    if bundle:
        raw["bundle"] = bundle
    if "stage" in raw:
        if "stages" in raw:
            raise RequestError("the rollout file has [[stage]] and stages: keep [[stage]]")
        stages = raw.pop("stage")
        if not isinstance(stages, list):
            raise RequestError("the rollout file has [stage]: write [[stage]], once for each stage")
        raw["stages"] = [_toml_stage(stage, number) for number, stage in enumerate(stages, 1)]
    if isinstance(deadline := raw.get("install_deadline"), str):
        del raw["install_deadline"]
        raw["install_deadline_s"] = parse_duration(deadline, "install_deadline")
    return parse_spec(raw, limits)


def _toml_stage(raw: object, number: int) -> dict[str, Any]:
    reader = Reader(raw, f"[[stage]] {number}", ("percent", "bake"))
    stage: dict[str, Any] = {
        "percent_bp": parse_percent(reader.text_or_number("percent"), f"stage {number} percent"),
        "bake_s": parse_duration(reader.text_or_number("bake"), f"stage {number} bake"),
    }
    return stage


def parse_spec(raw: object, limits: SpecLimits | None = None) -> RolloutSpec:
    """The JSON form of a spec, checked.

    Raises:
        RequestError: something is missing, unknown, of the wrong kind or out of range.
    """
    limits = limits or SpecLimits()
    reader = Reader(raw, "rollout", tuple(RolloutSpec.__dataclass_fields__))
    bundle = reader.text("bundle")
    bundle_class(bundle)
    model = reader.text("model", "")
    if model and not bundle.rpartition("/")[2].startswith(f"{model}-"):
        raise RequestError(f"model {model!r} is not the model of bundle {bundle!r}")
    strategy = reader.text("strategy", "canary")
    if strategy != "canary":
        raise RequestError(f"strategy = {strategy!r} is not known: the only strategy is canary")
    return RolloutSpec(
        model=model,
        bundle=bundle,
        stages=_stages(reader.items("stages"), limits) if reader.has("stages") else DEFAULT_STAGES,
        selector=_selector(reader.table("selector"), limits),
        guards=_guards(reader.table("guards")),
        strategy=strategy,
        install_deadline_s=reader.number("install_deadline_s", 3600.0, 1.0, limits.max_bake_s),
    )


def _stages(raw: list[Any], limits: SpecLimits) -> tuple[Stage, ...]:
    if not 1 <= len(raw) <= limits.max_stages:
        raise RequestError(f"a rollout has 1 to {limits.max_stages} stages, this one {len(raw)}")
    stages: list[Stage] = []
    for number, item in enumerate(raw, 1):
        reader = Reader(item, f"stage {number}", ("percent_bp", "bake_s"))
        stage = Stage(
            percent_bp=reader.integer("percent_bp", None, 1, ALL_BP),
            bake_s=reader.number("bake_s", None, 0.0, limits.max_bake_s),
        )
        if stages and stage.percent_bp <= stages[-1].percent_bp:
            raise RequestError(
                f"stage {number} has {stage.percent} and the one before it "
                f"{stages[-1].percent}: each stage must reach more of the fleet"
            )
        stages.append(stage)
    if stages[-1].percent_bp != ALL_BP:
        raise RequestError(
            f"the last stage has {stages[-1].percent}: it must be 100 %, or the rollout could "
            "never be promoted"
        )
    return tuple(stages)


def _selector(raw: Mapping[str, Any], limits: SpecLimits) -> tuple[tuple[str, str], ...]:
    if len(raw) > limits.max_labels:
        raise RequestError(f"a selector has at most {limits.max_labels} labels, not {len(raw)}")
    for key, value in raw.items():
        if not _LABEL_KEY.fullmatch(key):
            raise RequestError(f"selector key {key!r} is no label name: use a-z, 0-9, _, . and -")
        fits = isinstance(value, str) and 0 < len(value) <= limits.max_label_chars
        if not fits or not value.isprintable():
            raise RequestError(
                f"selector {key} = {value!r} is no label value: write a text of 1 to "
                f"{limits.max_label_chars} printable characters"
            )
    return tuple(sorted(raw.items()))


def _guards(raw: Mapping[str, Any]) -> Guards:
    reader = Reader(raw, "guards", tuple(Guards.__dataclass_fields__))
    base = Guards()
    guards = Guards(
        max_install_failure_rate=reader.rate(
            "max_install_failure_rate", base.max_install_failure_rate
        ),
        min_installs=reader.integer("min_installs", base.min_installs, 1, 1_000_000),
        max_error_rate=reader.rate("max_error_rate", base.max_error_rate),
        max_over_latency_rate=reader.rate("max_over_latency_rate", base.max_over_latency_rate),
        max_output_violation_rate=reader.rate(
            "max_output_violation_rate", base.max_output_violation_rate
        ),
        min_requests=reader.integer("min_requests", base.min_requests, 1, 1_000_000_000),
        min_devices=reader.integer("min_devices", base.min_devices, 1, 1_000_000),
        silence_s=reader.number("silence_s", base.silence_s, 1.0, 30 * 86_400.0),
    )
    if guards.max_install_failure_rate is None and all(rate is None for rate in guards.rates()):
        raise RequestError(
            "every guard is switched off, so nothing could stop this rollout: set at least one of "
            "max_install_failure_rate, max_error_rate, max_over_latency_rate or "
            "max_output_violation_rate"
        )
    return guards
