"""Reading a table of TOML or JSON strictly: every refusal names the key and what would be right."""

import difflib
import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, TypeVar

from fleet.errors import RequestError

__all__ = ["Reader", "parse_duration", "parse_percent"]

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_SECONDS: Final[Mapping[str, float]] = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

Word = TypeVar("Word", bound=StrEnum)


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


class Reader:
    """One table with known keys. Every method raises RequestError for a value of the wrong kind."""

    def __init__(self, raw: object, where: str, known: tuple[str, ...]) -> None:
        if not isinstance(raw, Mapping):
            raise RequestError(f"{where} must be a table of keys and values, not {raw!r:.60}")
        for key in raw:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                meant = f": did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
                raise RequestError(f"{where} has an unknown key {key!r}{meant}")
        self._raw: Mapping[str, Any] = raw
        self._where = where

    def has(self, key: str) -> bool:
        return key in self._raw

    def text(self, key: str, default: str | None = None) -> str:
        """A text; the default when the key is absent."""
        value = self._raw.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def text_or_number(self, key: str) -> str:
        """What a person may write with or without quotes, as text."""
        value = self._raw.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._wrong(key, value, "a text or a number")
        return str(value)

    def word(self, key: str, kind: type[Word], default: Word) -> Word:
        """One of the words of ``kind``; the default when the key is absent."""
        value = self._raw.get(key, default)
        if not isinstance(value, str) or value not in set(kind):
            raise self._wrong(key, value, f"one of {', '.join(kind)}")
        return kind(value)

    def flag(self, key: str) -> bool:
        """True or false; false when absent."""
        value = self._raw.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty when absent."""
        value = self.items(key)
        for item in value:
            if not isinstance(item, str):
                raise self._wrong(key, value, "a list of texts")
        return tuple(value)

    def integer(self, key: str, default: int | None, least: int, most: int) -> int:
        """A whole number between ``least`` and ``most``; required when there is no default."""
        value = self._raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(key, value, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None, least: float, most: float) -> float:
        """A number between ``least`` and ``most``; required when there is no default."""
        value = self._raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, f"a number from {least:g} to {most:g}")
        if not math.isfinite(value) or not least <= value <= most:
            raise self._wrong(key, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def rate(self, key: str, default: float | None) -> float | None:
        """A share from 0 up to, not including, 1. ``null`` or ``"off"`` switches it off: None.

        A limit of 1 is refused: no rate exceeds it, so it would look like a guard and be none.
        """
        value = self._raw.get(key, default)
        if value is None or value == "off":
            return None
        wanted = 'a share from 0 to below 1 (0.05 is 5 %), or "off"'
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, wanted)
        if not 0 <= value < 1:  # also refuses NaN
            raise self._wrong(key, value, wanted)
        return float(value)

    def table(self, key: str) -> Mapping[str, Any]:
        """A table below this one; empty when absent."""
        value = self._raw.get(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "a table of keys and values")
        return value

    def items(self, key: str) -> list[Any]:
        """A list; empty when absent."""
        value = self._raw.get(key, [])
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return value

    def _wrong(self, key: str, value: object, wanted: str) -> RequestError:
        if value is None and key not in self._raw:
            return RequestError(f"{self._where} has no {key}: set it to {wanted}")
        return RequestError(f"{self._where}: {key} = {value!r:.80} must be {wanted}")
