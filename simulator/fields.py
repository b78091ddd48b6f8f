"""Tables of a scenario file as frozen dataclasses: what a field may be is written where it is declared.

Rules kept here: an unknown key is refused with the nearest known one; a number is finite and within
its range; a message names the table, the key and what was written there.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from simulator.errors import ScenarioError

__all__ = ["field_of", "in_range", "keys_of", "known_keys", "number", "section", "text"]


_Section = TypeVar("_Section")


def number(
    default: float, doc: str, *, least: float = 0.0, most: float = 1e9, key: str = ""
) -> Any:
    """A dataclass field for a number with a range; whole when its default is."""
    return field(default=default, metadata={"doc": doc, "least": least, "most": most, "key": key})


def text(default: str, doc: str, *, key: str = "", choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field for a text, one of ``choices`` when given."""
    return field(default=default, metadata={"doc": doc, "key": key, "choices": choices})


def section(kind: Callable[..., _Section], raw: object, where: str) -> _Section:
    """One table of a scenario, checked against the fields of its dataclass ``kind``.

    Raises:
        ScenarioError: no table, an unknown key, a wrong type or a value out of range.
    """
    if not isinstance(raw, dict):
        raise ScenarioError(f"{where} is not a table.")
    by_key = {_key(known): known for known in fields(kind)}  # type: ignore[arg-type]
    known_keys(raw, tuple(by_key), where)
    values = {
        by_key[key].name: _value(value, by_key[key], f"{where} {key}") for key, value in raw.items()
    }
    return kind(**values)


def keys_of(kind: type[Any]) -> list[tuple[str, str, str]]:
    """Key, default and meaning of every field, for people: the documentation is made of it."""
    found = []
    for known in fields(kind):
        default = known.default
        if known.default_factory is not MISSING:
            default = known.default_factory()
        meaning = str(known.metadata["doc"])
        if choices := known.metadata.get("choices"):
            meaning += f"; one of {', '.join(choices)}"
        found.append((_key(known), _shown(default), meaning))
    return found


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, Mapping):
        inside = ", ".join(f'"{name}" = {share}' for name, share in default.items())
        return f"`{{ {inside} }}`" if inside else "none"
    return f"`{default:g}`" if isinstance(default, int | float) else f'`"{default}"`'


def known_keys(raw: Mapping[str, object], known: Sequence[str], where: str) -> None:
    """Refuse what is not in ``known``. Raises ScenarioError."""
    for key in raw:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        raise ScenarioError(f"{where} has the unknown key {key!r}: {hint}")


def _value(value: object, known: Field[Any], where: str) -> object:
    if known.name == "labels":
        return _labels(value, where)
    if known.name in ("kinds", "outputs"):
        return _shares(value, where)
    default = known.default
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ScenarioError(f"{where} = {value!r} is not true or false.")
        return value
    if isinstance(default, str):
        return _chosen(value, known, where)
    return in_range(value, known, where)


def _chosen(value: object, known: Field[Any], where: str) -> str:
    if not isinstance(value, str):
        raise ScenarioError(f"{where} = {value!r} is not a text.")
    choices = known.metadata.get("choices")
    if choices is not None and value not in choices:
        raise ScenarioError(f"{where} = {value!r} is not one of {', '.join(choices)}.")
    return value


def in_range(value: Any, known: Field[Any], where: str) -> Any:
    """``value`` as the field's kind of number. Raises ScenarioError."""
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


def _shares(value: object, where: str) -> Mapping[str, float]:
    if not isinstance(value, dict) or not value:
        raise ScenarioError(f"{where} is not a table of shares: write {{ 'NAME' = 1.0 }}.")
    shares: dict[str, float] = {}
    for name, share in value.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ScenarioError(f"{where}.{name} = {share!r} is not a share above 0 and up to 1.")
        shares[name] = float(share)
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        raise ScenarioError(f"{where} adds up to {sum(shares.values()):g}: shares add up to 1.")
    return shares


def _key(known: Field[Any]) -> str:
    return known.metadata.get("key") or known.name


def field_of(kind: type[Any], name: str) -> Field[Any]:
    """The field of a dataclass by its name."""
    return next(known for known in fields(kind) if known.name == name)
