"""A rollout spec from a rollout.toml and flags, in the JSON form the server takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleet.errors import RequestError
from fleet.rollout.parsing import parse_pair, parse_spec
from fleet.rollout.reading import parse_duration, parse_percent
from fleet.rollout.rollout_toml import spec_from_toml
from fleet.rollout.spec import Guards, StageKind

__all__ = ["Flags", "asked_spec"]

APPROVAL: Final = "approval"
METRIC_PREFIX: Final = "metrics."
Repeated = Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Flags:
    """What the flags say of a rollout, as it was written; empty where one was not given."""

    stages: Repeated = None
    selector: Repeated = None
    guards: Repeated = None
    install_deadline: str = ""
    strategy: str = ""
    exclude: Repeated = None
    open_hours: Repeated = None
    hold_back: str = ""
    retries: int | None = None
    routing_key: str = ""
    older: bool = False


def asked_spec(bundle: str, file: Path | None, flags: Flags) -> dict[str, Any]:
    """What the file says, with the flags over it.

    Raises:
        RequestError: file or flags cannot be read or understood.
    """
    over = {"bundle": bundle, "strategy": flags.strategy}
    over = {key: value for key, value in over.items() if value}
    spec: dict[str, Any] = dict(over)
    if file is not None:
        try:
            spec = spec_from_toml(file.read_text(encoding="utf-8"), over=over).to_json()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{file} cannot be read: {error}") from error
        except RequestError as error:
            raise RequestError(f"{file}: {error}") from error
    if not spec.get("bundle"):
        raise RequestError("which bundle? Name it, or say it in a rollout.toml given with --file")
    spec |= _plain(flags)
    if flags.guards:
        spec["guards"] = _guards(spec.get("guards", {}), flags.guards)
    return parse_spec(spec).to_json()


def _plain(flags: Flags) -> dict[str, Any]:
    """What the flags replace as a whole."""
    found: dict[str, Any] = {
        "stages": [_stage(text) for text in flags.stages or ()],
        "selector": dict(parse_pair(text, "--select") for text in flags.selector or ()),
        "exclude": list(flags.exclude or ()),
        "open_hours": list(flags.open_hours or ()),
        "hold_back": flags.hold_back,
        "routing_key": flags.routing_key,
    }
    found["older"] = flags.older
    found = {key: value for key, value in found.items() if value}
    if flags.retries is not None:
        found["retries"] = flags.retries
    if flags.install_deadline:
        deadline_s = parse_duration(flags.install_deadline, "--install-deadline")
        found["install_deadline_s"] = deadline_s
    return found


def _stage(text: str) -> dict[str, Any]:
    """``10%:15m``, ``20 devices:15m``, and then ``:approval`` or a kind, like ``10%:15m:shadow``."""
    reach, colon, rest = text.partition(":")
    if not colon:
        raise RequestError(f"--stage {text!r} has no bake time: write PERCENT:BAKE, like 10%:15m")
    bake, *words = rest.split(":")
    stage: dict[str, Any] = {"bake_s": parse_duration(bake, f"--stage {text!r}: the bake time")}
    count = reach.strip().removesuffix("devices").removesuffix("device").strip()
    if count != reach.strip():
        stage["devices"] = _whole(count, f"--stage {text!r}")
    else:
        stage["percent_bp"] = parse_percent(reach, f"--stage {text!r}: the percentage")
    for word in words:
        if word == APPROVAL:
            stage["approval"] = True
        elif word in set(StageKind):
            stage["kind"] = word
        else:
            known = ", ".join((APPROVAL, *StageKind))
            raise RequestError(f"--stage {text!r}: {word!r} is not known: use one of {known}")
    return stage


def _guards(before: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    guards = dict(before)
    metrics = dict(guards.get("metrics", dict(Guards().metrics)))
    for text in texts:
        key, value = parse_pair(text, "--guard")
        if not key.startswith(METRIC_PREFIX):
            guards[key] = _limit(text, key, value)
        elif value == "off":
            metrics.pop(key.removeprefix(METRIC_PREFIX), None)
        else:
            metrics[key.removeprefix(METRIC_PREFIX)] = _number(text, value)
    return guards | {"metrics": metrics}


def _limit(text: str, key: str, value: str) -> Any:
    if key == "statistics":
        return value
    if value == "off":
        return None
    kind = Guards.__dataclass_fields__.get(key)
    if kind is not None and kind.type is int:
        return _whole(value, f"--guard {text!r}")
    return _number(text, value)


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise RequestError(f"--guard {text!r}: {value!r} is no number, and not off") from error


def _whole(value: str, what: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise RequestError(f"{what}: {value!r} is no number, and not off") from error
