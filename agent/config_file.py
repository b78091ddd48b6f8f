"""Reading a TOML file into documented dataclasses, one a section.

Rules kept here:
- Every key carries its own documentation; the example file is printed from the same fields that are read.
- Nothing is guessed: an unknown section or key is refused with the nearest known one, a value of the wrong type or
  outside its range with what was expected. Every message names file, section and key.
- Relative paths are relative to the file, not to where the agent happens to be started.
"""

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from agent.errors import ConfigError

__all__ = ["Check", "key", "read_sections", "read_toml", "section_example"]

MAX_FILE_BYTES: Final = 256 * 1024

T = TypeVar("T")

Check = Callable[[Any, str], Any]
"""Takes a value and ``[section] key``; returns the value to keep. Raises ConfigError."""


def key(  # noqa: PLR0913 (every argument is a keyword and documents itself)
    doc: str,
    *,
    default: Any = MISSING,
    example: Any = MISSING,
    least: float | None = None,
    most: float | None = None,
    check: Check | None = None,
    name: str = "",
) -> Any:
    """A documented key of a section; without ``default`` it must be given. ``name``: as the file says it."""
    about = {
        "doc": doc,
        "example": example,
        "least": least,
        "most": most,
        "check": check,
        "name": name,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, slots=True)
class _Place:
    file: Path
    section: str

    def of(self, name: str) -> str:
        return f"{self.file}: [{self.section}] {name}"


def _is_optional(entry: Field[Any]) -> bool:
    return entry.default is not MISSING or entry.default_factory is not MISSING


def _name(entry: Field[Any]) -> str:
    return entry.metadata["name"] or entry.name


def read_toml(path: Path) -> Mapping[str, Any]:
    """The file as nested tables.

    Raises:
        ConfigError: it cannot be read, is too large or is not TOML.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}. "
            f"'fleet-agent config --example' prints one to begin with."
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has {len(raw)} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def read_sections(
    tables: Mapping[str, Any], path: Path, types: Mapping[str, type]
) -> dict[str, Any]:
    """One instance a section of ``types``, read from ``tables``.

    Raises:
        ConfigError: a section or key is unknown, missing, of the wrong type or out of range.
    """
    for name, value in tables.items():
        if name not in types:
            raise ConfigError(f"{path}: unknown section [{name}]{_nearest(name, types)}")
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{path}: {name} must be a section: write [{name}] on a line of its own"
            )
    return {
        name: _read_section(_Place(path, name), tables.get(name, {}), section)
        for name, section in types.items()
    }


def _read_section(place: _Place, table: Mapping[str, Any], section: type[T]) -> T:
    known = {_name(entry): entry for entry in fields(section)}  # type: ignore[arg-type]
    for name in table:
        if name not in known:
            raise ConfigError(f"{place.of(name)} is not a key{_nearest(name, known)}")
    hints = get_type_hints(section)
    values: dict[str, Any] = {}
    for name, entry in known.items():
        kind = hints[entry.name]
        if name in table:
            values[entry.name] = _value(place, entry, kind, table[name])
        elif not _is_optional(entry):
            raise ConfigError(f"{place.of(name)} is missing: {entry.metadata['doc']}")
        elif kind is Path:
            values[entry.name] = place.file.parent / str(entry.default)
    return section(**values)


def _value(place: _Place, entry: Field[Any], kind: Any, value: Any) -> Any:
    where = place.of(_name(entry))
    converted = _converted(where, kind, value)
    if kind is Path:
        converted = place.file.parent / converted
    least, most = entry.metadata["least"], entry.metadata["most"]
    if least is not None and converted < least:
        raise ConfigError(f"{where} = {value} is too small: at least {least:g}")
    if most is not None and converted > most:
        raise ConfigError(f"{where} = {value} is too large: at most {most:g}")
    check = entry.metadata["check"]
    return converted if check is None else check(converted, where)


def _converted(where: str, kind: Any, value: Any) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
        raise ConfigError(f"{where} = {value} must be a finite number")
    if kind == Mapping[str, str] and isinstance(value, dict):
        if all(isinstance(item, str) for item in value.values()):
            return dict(value)
        raise ConfigError(f'{where} must have text values only: write {{ site = "north" }}')
    if kind == tuple[str, ...] and isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f"{where} must be a list of texts")
    if kind is Path and isinstance(value, str) and value:
        return Path(value).expanduser()
    if type(value) is kind:  # exactly: true is not a whole number here
        return value
    raise ConfigError(f"{where} = {value!r} must be {_EXPECTED[kind]}")


_EXPECTED: Final[Mapping[Any, str]] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    tuple[str, ...]: 'a list like ["a", "b"]',
    Mapping[str, str]: 'a table like { site = "north" }',
}


def _nearest(name: str, known: Mapping[str, object]) -> str:
    import difflib  # only for who mistyped: the agent stays up for months without it

    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are: {', '.join(known)}"


def section_example(name: str, section: type) -> str:
    """The section as documented TOML; keys with a default are there with it, commented out."""
    lines = [f"[{name}]"]
    for entry in fields(section):
        lines += [f"# {line}" for line in entry.metadata["doc"].splitlines()]
        shown = entry.metadata["example"]
        if shown is MISSING:
            shown = entry.default
        lines.append(f"{'# ' if _is_optional(entry) else ''}{_name(entry)} = {_toml(shown)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{name} = {json.dumps(item)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, tuple):
        return json.dumps(list(value))
    if isinstance(value, int | float):
        return f"{value:_}" if isinstance(value, int) else f"{value:g}"
    return json.dumps(str(value))
