"""A rollout spec from a rollout.toml and flags, in the JSON form the server takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet.errors import RequestError
from fleet.rollout.parsing import parse_spec
from fleet.rollout.reading import parse_duration, parse_percent
from fleet.rollout.rollout_toml import spec_from_toml
from fleet.rollout.spec import Guards

__all__ = ["asked_spec"]

Repeated = Sequence[str] | None


def asked_spec(
    bundle: str,
    file: Path | None,
    flags: tuple[Repeated, Repeated, Repeated],
    install_deadline: str = "",
) -> dict[str, Any]:
    """What the file says, with the flags (stages, selector, guards) over it.

    Raises:
        RequestError: file or flags cannot be read or understood.
    """
    stages, selector, guards = flags
    spec: dict[str, Any] = {}
    if file is not None:
        try:
            spec = spec_from_toml(file.read_text(encoding="utf-8"), bundle=bundle).to_json()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{file} cannot be read: {error}") from error
        except RequestError as error:
            raise RequestError(f"{file}: {error}") from error
    if bundle:
        spec["bundle"] = bundle
    if not spec.get("bundle"):
        raise RequestError("which bundle? Name it, or say it in a rollout.toml given with --file")
    if stages:
        spec["stages"] = [_stage(text) for text in stages]
    if selector:
        spec["selector"] = dict(_pair(text, "--select") for text in selector)
    if guards:
        spec["guards"] = spec.get("guards", {}) | dict(_guard(text) for text in guards)
    if install_deadline:
        spec["install_deadline_s"] = parse_duration(install_deadline, "--install-deadline")
    return parse_spec(spec).to_json()


def _stage(text: str) -> dict[str, Any]:
    percent, colon, bake = text.partition(":")
    if not colon:
        raise RequestError(f"--stage {text!r} has no bake time: write PERCENT:BAKE, like 10%:15m")
    return {
        "percent_bp": parse_percent(percent, f"--stage {text!r}: the percentage"),
        "bake_s": parse_duration(bake, f"--stage {text!r}: the bake time"),
    }


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RequestError(f"{flag} {text!r} is not understood: write NAME=VALUE")
    return key, value


def _guard(text: str) -> tuple[str, Any]:
    key, value = _pair(text, "--guard")
    if value == "off":
        return key, None
    kind = Guards.__dataclass_fields__.get(key)
    try:
        if kind is not None and kind.type is int:
            return key, int(value)
        return key, float(value)
    except ValueError as error:
        raise RequestError(f"--guard {text!r}: {value!r} is no number, and not off") from error
