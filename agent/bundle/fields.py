"""Strict reading of JSON from outside: every key known, every value of the right kind and bounded.

A ``Fields`` takes the keys of one JSON object apart; ``done`` refuses what was not asked for. Each
error names the place (``files[2].sha256``), the value and the rule.
"""

import json
import math
import re
from collections.abc import Iterable
from itertools import islice
from typing import Final

from agent.bundle.errors import ManifestError

__all__ = [
    "MAX_TEXT_CHARS",
    "SHA256_PATTERN",
    "Fields",
    "as_integer",
    "as_number",
    "as_pair",
    "as_text",
    "is_text",
    "load_json",
    "refuse_repeats",
    "shown",
]

SHA256_PATTERN: Final = re.compile(r"[0-9a-f]{64}")
MAX_TEXT_CHARS: Final = 256
_SHOWN_CHARS: Final = 60


def load_json(raw: bytes, what: str, max_bytes: int) -> object:
    """Parse strict JSON: UTF-8, no repeated keys, no NaN or Infinity, at most ``max_bytes``.

    Raises:
        ManifestError: it is not.
    """
    if len(raw) > max_bytes:
        raise ManifestError(f"{what} is {len(raw)} bytes; at most {max_bytes} are allowed")

    def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ManifestError(
                f"{what} has a repeated key in {{{_listed(key for key, _ in pairs)}}}"
            )
        return found

    def no_constant(text: str) -> object:
        raise ManifestError(f"{what} holds {text}, which is not JSON")

    try:
        return json.loads(raw.decode(), object_pairs_hook=no_repeats, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:  # includes bad UTF-8 and numbers of absurd length
        raise ManifestError(f"{what} is not valid JSON: {error}") from error


def is_text(value: str, max_chars: int) -> bool:
    """Whether it is short enough and UTF-8 can hold it (JSON can smuggle half a surrogate pair)."""
    return len(value) <= max_chars and not any("\ud800" <= char <= "\udfff" for char in value)


def shown(value: object) -> str:
    """A value for a message, shortened."""
    try:
        text = repr(value)
    except RecursionError:  # read with fewer frames on the stack than there are now
        return "something nested too deep"
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


def _listed(keys: Iterable[str]) -> str:
    """Keys for a message, shortened; half a surrogate pair is written as its number."""
    text = ", ".join(islice(keys, 20))[:200]
    return text.encode("ascii", "backslashreplace").decode("ascii")


class Fields:
    """One JSON object being taken apart. ``where`` is its place, for messages."""

    __slots__ = ("_left", "_where")

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ManifestError(f"{where} must be an object, not {shown(value)}")
        self._left: dict[str, object] = dict(value)
        self._where = where

    def at(self, key: str) -> str:
        """The place of ``key``, for messages."""
        return f"{self._where}.{key}"

    def take(self, key: str) -> object:
        """The raw value of a key that must be there."""
        if key not in self._left:
            raise ManifestError(f"{self.at(key)} is missing")
        return self._left.pop(key)

    def optional(self, key: str) -> object | None:
        """The raw value of a key that may be missing; None then."""
        return self._left.pop(key, None)

    def done(self) -> None:
        """Refuse every key nobody asked for."""
        if self._left:
            raise ManifestError(
                f"{self._where} has unknown keys {_listed(sorted(self._left))}; "
                f"a newer agent may be needed to read it"
            )

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        return as_text(self.take(key), self.at(key), pattern)

    def integer(self, key: str, minimum: int, maximum: int) -> int:
        return as_integer(self.take(key), self.at(key), minimum, maximum)

    def number(self, key: str, minimum: float = -math.inf, maximum: float = math.inf) -> float:
        return as_number(self.take(key), self.at(key), minimum, maximum)

    def optional_number(self, key: str) -> float | None:
        if self._left.get(key, ...) is None:
            self.take(key)
            return None
        return self.number(key)

    def items(self, key: str, max_items: int, *, min_items: int = 0) -> list[tuple[object, str]]:
        """The items of a list, each with its place."""
        value = self.take(key)
        if not isinstance(value, list) or not min_items <= len(value) <= max_items:
            count = f"{len(value)} items" if isinstance(value, list) else shown(value)
            raise ManifestError(
                f"{self.at(key)} must be a list of {min_items} to {max_items} items, not {count}"
            )
        return [(item, f"{self.at(key)}[{index}]") for index, item in enumerate(value)]

    def texts(
        self, key: str, max_items: int, pattern: re.Pattern[str] | None = None
    ) -> tuple[str, ...]:
        """A list of texts without repeats."""
        found = [as_text(item, where, pattern) for item, where in self.items(key, max_items)]
        refuse_repeats(found, self.at(key))
        return tuple(found)


def as_text(value: object, where: str, pattern: re.Pattern[str] | None = None) -> str:
    """``value`` when it is text that matches ``pattern`` as a whole. ``where``: its place."""
    if not isinstance(value, str) or not is_text(value, MAX_TEXT_CHARS):
        raise ManifestError(
            f"{where} must be text of at most {MAX_TEXT_CHARS} characters, not {shown(value)}"
        )
    if pattern is not None and not pattern.fullmatch(value):
        raise ManifestError(f"{where} = {shown(value)} does not match {pattern.pattern}")
    return value


def as_integer(value: object, where: str, minimum: int, maximum: int) -> int:
    """``value`` when it is a whole number in the range."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ManifestError(
            f"{where} must be a whole number from {minimum} to {maximum}, not {shown(value)}"
        )
    return value


def as_number(
    value: object, where: str, minimum: float = -math.inf, maximum: float = math.inf
) -> float:
    """``value`` when it is a finite number in the range."""
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and minimum <= value <= maximum
    ):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:  # a whole number beyond a double
            pass
    raise ManifestError(f"{where} must be a number from {minimum} to {maximum}, not {shown(value)}")


def as_pair(value: object, where: str) -> tuple[object, object]:
    """``value`` when it is a list of exactly two items."""
    if not isinstance(value, list) or len(value) != 2:
        raise ManifestError(f"{where} must be a list of two, not {shown(value)}")
    return value[0], value[1]


def refuse_repeats(names: Iterable[str], where: str) -> None:
    """Raise ManifestError when a name comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ManifestError(f"{where} has {shown(name)} twice")
        seen.add(name)
