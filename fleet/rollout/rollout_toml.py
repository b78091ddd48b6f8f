"""A rollout.toml: the JSON form of a spec with the units people write (``10%``, ``15m``).

Rules kept here: it only rewrites; what the values may be is checked in one place, ``parsing``.
"""

import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final

from fleet.errors import RequestError
from fleet.rollout.parsing import SpecLimits, parse_spec
from fleet.rollout.reading import Reader, parse_duration, parse_percent
from fleet.rollout.spec import RolloutSpec

__all__ = ["spec_from_toml"]

# what is written -> what it is called in the JSON form, and how it is read
_DURATIONS: Final = {"bake": "bake_s"}
_SHARES: Final = {"percent": "percent_bp", "traffic": "traffic_bp"}
_AS_THEY_ARE: Final = ("devices", "kind", "approval", "devices_per_minute", "ramp")


def spec_from_toml(
    text: str, limits: SpecLimits | None = None, over: Mapping[str, Any] | None = None
) -> RolloutSpec:
    """A rollout.toml: as the JSON form, with ``[[stage]]`` tables of ``percent`` and ``bake``.

    ``over`` has keys that stand in for those in the file.

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
    raw |= over or {}
    _rewrite_list(raw, "stage", _stage)
    _rewrite_list(raw, "check", _check)
    if isinstance(deadline := raw.get("install_deadline"), str):
        del raw["install_deadline"]
        raw["install_deadline_s"] = parse_duration(deadline, "install_deadline")
    hold_back = raw.get("hold_back")
    if isinstance(hold_back, int) and not isinstance(hold_back, bool):
        raw["hold_back"] = str(hold_back)
    return parse_spec(raw, limits)


def _rewrite_list(
    raw: dict[str, Any], name: str, rewrite: Callable[[object, int], dict[str, Any]]
) -> None:
    """``[[stage]]`` becomes ``stages``."""
    plural = f"{name}s"
    if name not in raw:
        return
    if plural in raw:
        raise RequestError(f"the rollout file has [[{name}]] and {plural}: keep [[{name}]]")
    items = raw.pop(name)
    if not isinstance(items, list):
        raise RequestError(f"the rollout file has [{name}]: write [[{name}]], once for each {name}")
    raw[plural] = [rewrite(item, number) for number, item in enumerate(items, 1)]


def _stage(raw: object, number: int) -> dict[str, Any]:
    where = f"[[stage]] {number}"
    reader = Reader(raw, where, (*_SHARES, *_DURATIONS, *_AS_THEY_ARE))
    assert isinstance(raw, dict)  # the reader has looked
    if ("percent" in raw) == ("devices" in raw):
        raise RequestError(f"{where} needs percent or devices, one of the two")
    stage: dict[str, Any] = {key: raw[key] for key in _AS_THEY_ARE if key in raw}
    for key, name in _SHARES.items():
        if key in raw:
            stage[name] = parse_percent(reader.text_or_number(key), f"stage {number} {key}")
    bake = reader.text_or_number("bake")
    return stage | {"bake_s": parse_duration(bake, f"stage {number} bake")}


def _check(raw: object, number: int) -> dict[str, Any]:
    reader = Reader(raw, f"[[check]] {number}", ("url", "timeout", "every", "plain_http"))
    check: dict[str, Any] = {"url": reader.text("url")}
    for key in ("timeout", "every"):
        if reader.has(key):
            text = reader.text_or_number(key)
            check[f"{key}_s"] = parse_duration(text, f"check {number} {key}")
    if reader.has("plain_http"):
        check["plain_http"] = reader.flag("plain_http")
    return check
