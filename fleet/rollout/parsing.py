"""Reading what an operator sends, or the database kept, into a spec.

Rules kept here: a spec is complete and checked before anything starts; unknown keys are refused by
name; what ``to_json`` gives reads back the same, and a spec stored by an older version still reads.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent.trust.directive import OPEN_HOURS
from fleet.errors import RequestError
from fleet.rollout.guard_parsing import parse_checks, parse_guards
from fleet.rollout.reading import Reader, parse_percent
from fleet.rollout.spec import (
    ALL_BP,
    AUTO,
    DEFAULT_STAGES,
    RolloutSpec,
    Stage,
    StageKind,
    Strategy,
    bundle_class,
)
from fleet.rollout.strategies import kind_of, misfit

__all__ = ["SpecLimits", "parse_hold_back", "parse_pair", "parse_spec"]

RAMPS: Final = ("linear", "exponential")
DEFAULT_TRAFFIC_BP: Final[Mapping[StageKind, int]] = {StageKind.SHADOW: 1000, StageKind.AB: 5000}
_LABEL_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")
_PARAMETER: Final = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_MAX_DEVICES: Final = 100_000_000
_MAX_DOUBLINGS: Final = 20


@dataclass(frozen=True, slots=True)
class SpecLimits:
    """How large a spec may be."""

    max_stages: int = 20
    max_labels: int = 16
    max_excluded: int = 64
    max_open_hours: int = 32
    max_label_chars: int = 64
    max_retries: int = 10
    max_bake_s: float = 30 * 86_400.0
    max_toml_bytes: int = 64 * 1024


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
    strategy = reader.word("strategy", Strategy, Strategy.CANARY)
    hold_back_bp = reader.integer("hold_back_bp", 0, 0, ALL_BP - 1)
    stages = DEFAULT_STAGES[strategy]
    if reader.has("stages"):
        stages = _stages(reader.items("stages"), strategy, limits)
    _require_growth(strategy, stages, ALL_BP - hold_back_bp)
    return RolloutSpec(
        model=model,
        bundle=bundle,
        stages=stages,
        selector=_selector(reader.table("selector"), limits),
        guards=parse_guards(reader.table("guards")),
        strategy=strategy,
        install_deadline_s=reader.number("install_deadline_s", 3600.0, 1.0, limits.max_bake_s),
        exclude=_exclude(reader.texts("exclude"), limits),
        open_hours=_open_hours(reader.texts("open_hours"), limits),
        hold_back=parse_hold_back(reader.text("hold_back", AUTO)),
        hold_back_bp=hold_back_bp,
        retries=reader.integer("retries", 0, 0, limits.max_retries),
        routing_key=_routing_key(reader.text("routing_key", ""), strategy),
        older=reader.flag("older"),
        checks=parse_checks(reader.items("checks")),
    )


def parse_hold_back(text: str) -> str:
    """``auto``, ``5%``, or a number of devices, in the form in which it is kept.

    Raises:
        RequestError: it is none of the three.
    """
    text = text.strip()
    if text == AUTO or (text.isascii() and text.isdigit() and int(text) <= _MAX_DEVICES):
        return text if text == AUTO else str(int(text))
    if text.endswith("%") and parse_percent(text, "hold_back") <= ALL_BP // 2:
        return f"{parse_percent(text, 'hold_back') / 100:g}%"
    raise RequestError(
        f'hold_back = {text!r:.60} is not understood: write "auto", a share up to 50 like "5%", or '
        "a number of devices like 100; 0 holds nobody back"
    )


def parse_pair(text: str, what: str) -> tuple[str, str]:
    """Label and value in ``site=lab``. Raises RequestError."""
    label, equals, value = text.partition("=")
    if not equals or not label:
        raise RequestError(f"{what} {text!r:.80} is not understood: write NAME=VALUE")
    return label, value


# --- stages ---------------------------------------------------------------------------------------

_STAGE_KEYS: Final = tuple(Stage.__dataclass_fields__)


def _stages(raw: list[Any], strategy: Strategy, limits: SpecLimits) -> tuple[Stage, ...]:
    if not 1 <= len(raw) <= limits.max_stages:
        raise RequestError(f"a rollout has 1 to {limits.max_stages} stages, this one {len(raw)}")
    return tuple(
        _stage(item, number, kind_of(strategy, number, len(raw)), limits)
        for number, item in enumerate(raw, 1)
    )


def _stage(raw: object, number: int, kind: StageKind, limits: SpecLimits) -> Stage:
    where = f"stage {number}"
    reader = Reader(raw, where, _STAGE_KEYS)
    kind = reader.word("kind", StageKind, kind)
    devices = reader.integer("devices", 0, 0, _MAX_DEVICES)
    least_bp = 0 if devices else 1
    stage = Stage(
        percent_bp=reader.integer("percent_bp", 0 if devices else None, least_bp, ALL_BP),
        bake_s=reader.number("bake_s", None, 0.0, limits.max_bake_s),
        kind=kind,
        devices=devices,
        traffic_bp=reader.integer("traffic_bp", DEFAULT_TRAFFIC_BP.get(kind, 0), 0, ALL_BP),
        approval=reader.flag("approval"),
        devices_per_minute=reader.number("devices_per_minute", 0.0, 0.0, float(_MAX_DEVICES)),
        ramp=reader.text("ramp", ""),
        ramp_s=reader.number("ramp_s", 0.0, 0.0, limits.max_bake_s),
        ramp_doublings=reader.integer("ramp_doublings", 0, 0, _MAX_DOUBLINGS),
    )
    return _checked(stage, where)


def _checked(stage: Stage, where: str) -> Stage:
    """The stage, if its keys go together. Raises RequestError."""
    if stage.ramp not in ("", *RAMPS):
        raise RequestError(f"{where}: ramp = {stage.ramp!r:.60} must be one of {', '.join(RAMPS)}")
    limited = stage.devices_per_minute > 0
    if stage.ramp and not limited:
        raise RequestError(f"{where} has a ramp and no devices_per_minute: say how many at most")
    if limited and stage.is_beside:
        raise RequestError(
            f"{where} is of kind {stage.kind}: devices_per_minute is for stages of kind canary"
        )
    shares = stage.kind in DEFAULT_TRAFFIC_BP
    if shares and stage.traffic_bp == 0:
        raise RequestError(f"{where} is of kind {stage.kind} and gets no traffic: say how much")
    if not shares and stage.traffic_bp:
        raise RequestError(f"{where} is of kind {stage.kind}: traffic is for shadow and ab")
    return stage


def _require_growth(strategy: Strategy, stages: Sequence[Stage], reach_bp: int) -> None:
    """Each stage reaches more than the one before it, and the last everyone but the hold-back."""
    wrong = misfit(strategy, stages)
    if wrong:
        raise RequestError(wrong)
    for number, (before, stage) in enumerate(itertools.pairwise(stages), 2):
        is_capped = reach_bp < ALL_BP and before.percent_bp == stage.percent_bp == reach_bp
        if not is_capped and not _grows(before, stage):
            raise RequestError(
                f"stage {number} has {stage.percent} and the one before it "
                f"{before.percent}: each stage must reach more of the fleet"
            )
    if stages[-1].percent_bp < reach_bp:
        raise RequestError(
            f"the last stage has {stages[-1].percent}: it must be 100 %, or the rollout could "
            "never be promoted"
        )


def _grows(before: Stage, stage: Stage) -> bool:
    if before.kind is not stage.kind:
        return True
    if before.devices and stage.devices:
        return stage.devices > before.devices
    if before.devices or stage.devices:
        return True  # the plan tells: it knows the fleet
    if stage.kind is StageKind.AB and stage.traffic_bp > before.traffic_bp:
        return stage.percent_bp >= before.percent_bp
    return stage.percent_bp > before.percent_bp


# --- the rest -------------------------------------------------------------------------------------


def _selector(raw: Mapping[str, Any], limits: SpecLimits) -> tuple[tuple[str, str], ...]:
    if len(raw) > limits.max_labels:
        raise RequestError(f"a selector has at most {limits.max_labels} labels, not {len(raw)}")
    for label, value in raw.items():
        _require_label("selector", label, value, limits)
    return tuple(sorted(raw.items()))


def _exclude(raw: Sequence[str], limits: SpecLimits) -> tuple[tuple[str, str], ...]:
    if len(raw) > limits.max_excluded:
        raise RequestError(f"exclude has at most {limits.max_excluded} entries, not {len(raw)}")
    pairs = tuple(parse_pair(text, "exclude") for text in raw)
    for label, value in pairs:
        _require_label("exclude", label, value, limits)
    return tuple(dict.fromkeys(pairs))


def _require_label(where: str, label: str, value: object, limits: SpecLimits) -> None:
    if not _LABEL_KEY.fullmatch(label):
        raise RequestError(f"{where} key {label!r} is no label name: use a-z, 0-9, _, . and -")
    fits = isinstance(value, str) and 0 < len(value) <= limits.max_label_chars
    if not fits or not str(value).isprintable():
        raise RequestError(
            f"{where} {label} = {value!r} is no label value: write a text of 1 to "
            f"{limits.max_label_chars} printable characters"
        )


def _open_hours(raw: Sequence[str], limits: SpecLimits) -> tuple[str, ...]:
    if len(raw) > limits.max_open_hours:
        raise RequestError(f"open_hours has at most {limits.max_open_hours} spans, not {len(raw)}")
    spans = tuple(" ".join(text.lower().split()) for text in raw)
    for span in spans:
        if not OPEN_HOURS.fullmatch(span):
            raise RequestError(
                f"open_hours: {span!r:.60} is no span of local time: write 01:00-05:00, "
                "sat 00:00-23:59 or mon-fri 22:00-04:00"
            )
    return spans


def _routing_key(text: str, strategy: Strategy) -> str:
    if text and strategy is not Strategy.AB:
        raise RequestError(f"routing_key is for strategy ab, and this one is {strategy}")
    if not _PARAMETER.fullmatch(text):
        raise RequestError(
            f"routing_key = {text!r:.80} is no name of a request parameter: use A-Z, a-z, 0-9, _, . "
            "and -, at most 64"
        )
    return text
