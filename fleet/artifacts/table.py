"""Strict reading of one TOML table: every key known, every value of the right kind.

An unknown key is refused with the nearest known one; each message names the file, the table and the key.
"""

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fleet.artifacts.errors import ProjectError

__all__ = ["Table", "is_number"]


class Table:
    """A table of ``muster.toml`` being read. ``where``: its place, for messages (``[bundle]``)."""

    __slots__ = ("_values", "where")

    def __init__(self, value: object, where: str, known: Sequence[str] | None) -> None:
        if not isinstance(value, dict):
            raise ProjectError(f"{where} must be a table, not {value!r:.60}")
        self.where = where
        self._values: dict[str, Any] = value
        for key in value:
            if known is not None and key not in known:
                raise ProjectError(f"{where} has the unknown key {key!r}{_nearest(key, known)}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def refuse(self, key: str, expected: str) -> ProjectError:
        """The error for a value that is not what is expected."""
        if key not in self._values:
            return ProjectError(f"{self.where} lacks {key!r}, which must be {expected}")
        return ProjectError(f"{self.where} {key} = {self._values[key]!r:.60} must be {expected}")

    def text(
        self, key: str, default: str | None = None, *, like: re.Pattern[str] | None = None
    ) -> str:
        if key not in self._values and default is not None:
            return default
        value = self._values.get(key)
        if not isinstance(value, str):
            raise self.refuse(key, "text")
        if like is not None and not like.fullmatch(value):
            raise self.refuse(key, f"text that matches {like.pattern}")
        return value

    def integer(self, key: str, default: int, least: int = 0, most: int = 2**53) -> int:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refuse(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float, least: float = 0.0, most: float = math.inf) -> float:
        value = self._values.get(key, default)
        if not is_number(value) or not least <= value <= most or not math.isfinite(value):
            span = f"of at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
            raise self.refuse(key, f"a number {span}")
        return float(value)

    def texts(self, key: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        value = self._values.get(key, list(default))
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(key, "a list of texts")
        return tuple(value)

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        """A table of texts, in the order of the file."""
        value = self._values.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise self.refuse(key, 'a table of texts such as { name = "other" }')
        return tuple(value.items())

    def shape(self, key: str) -> tuple[int, ...] | None:
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(
            isinstance(size, int) and not isinstance(size, bool) and size >= -1 for size in value
        ):
            raise self.refuse(key, "a list of sizes, -1 for a free one, such as [-1, 64]")
        return tuple(value)

    def span(self, key: str) -> tuple[float | None, float | None]:
        """``[low, high]``; an infinite end is None."""
        value = self._values.get(key)
        if value is None:
            return None, None
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(is_number(end) for end in value)
        ):
            raise self.refuse(key, "a range [low, high]; an end may be -inf or inf")
        low, high = float(value[0]), float(value[1])
        if not low <= high:  # refuses NaN as well
            raise self.refuse(key, "a range whose low end is not above its high end")
        return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)

    def get(self, key: str) -> Any:
        """The value as it is; None when there is none."""
        return self._values.get(key)

    def items(self) -> Iterator[tuple[str, Any]]:
        yield from self._values.items()

    def table(self, key: str, known: Sequence[str] | None) -> "Table":
        """The table ``[key]``, empty when it is not there."""
        return Table(self._values.get(key, {}), f"{self.where}[{key}]", known)

    def tables(self, key: str, known: Sequence[str]) -> list["Table"]:
        """The tables ``[[key]]``, each called by its name where it has one."""
        value = self._values.get(key, [])
        if not isinstance(value, list):
            raise ProjectError(f"{self.where}{key} must be written as [[{key}]] tables")
        found = []
        for index, item in enumerate(value):
            name = item.get("name", index + 1) if isinstance(item, dict) else index + 1
            found.append(Table(item, f"{self.where}[[{key}]] {name!r:.60}", known))
        return found


def is_number(value: object) -> bool:
    """Whether TOML says a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(known)}"
