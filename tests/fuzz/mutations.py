"""Hypothesis strategies that turn valid inputs into hostile ones.

Two kinds: bytes changed here and there (``bytes_like``), and JSON whose parts are replaced, repeated, renamed or left
out (``json_like``), so that what is wrong lies deep behind what is right. Values that trip readers up are listed, not
left to chance.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from hypothesis import settings
from hypothesis import strategies as st

__all__ = ["NASTY", "bytes_like", "examples", "json_like", "nested"]

_MARK: Final = "\x00here\x00"


def examples(count: int) -> settings:
    """So many examples in the suite, and as many times more in another profile as that has more (``explore``)."""
    return settings(max_examples=count * settings.default.max_examples // 50)


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    """JSON that lies so deep."""
    return opening * depth + closing * depth


NASTY: Final[Sequence[str]] = (
    "null", "true", "false", "0", "-1", "1", "1.0", "-0.0", "0.5", "1e999", "-1e999", "NaN", "Infinity", "-Infinity",
    "9007199254740993", "18446744073709551616", "1" + "0" * 400, "9" * 4300, "9" * 4301, "1e-999", "1E400",
    '""', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\\ud83d\\ude00"', '"a\\u0301"', '"\u202e"', '"../../x"',
    '"/etc/passwd"', '"a\\nb"', '"' + "x" * 257 + '"', '"' + "x" * 5000 + '"', '"bundles/cam/m-1"', '">=1,<2,~=3"',
    '"==1.*"', '"===x"', '"mon-sun 00:00-00:00"', '"2030-01-01T00:00:00Z"', '"0000-00-00T00:00:00Z"',
    "[]", "{}", "[[]]", "[null]", '{"a":1,"a":2}', '{"\\ud800":1,"\\ud800":2}',
    '{"":{}}', '{"\\ud800":1}', '{"__class__":"x"}',
    "[" + "0," * 2000 + "0]", "[" + "[]," * 500 + "[]]", '["a","a"]', '[["id","x"]]', "[[0,0],[0,10000]]",
    nested(64), nested(500), nested(50, '{"a":[', "]}"), nested(900), nested(5000),
    '{"a":' * 300 + "1" + "}" * 300,
)  # fmt: skip
"""JSON, or what only looks like it, to be put in the place of a value."""


def json_like(seeds: Sequence[Any], *, most: int = 3) -> st.SearchStrategy[bytes]:
    """JSON like one of ``seeds`` with up to ``most`` of its parts made worse, mostly still JSON."""

    @st.composite
    def drawn(draw: st.DrawFn) -> bytes:
        value = json.loads(json.dumps(draw(st.sampled_from(seeds))))
        texts: list[str] = []
        for _ in range(draw(st.integers(1, most))):
            places = list(_places(value, ()))
            place = draw(st.sampled_from(places))
            change = draw(st.sampled_from(_CHANGES))
            rename = partial(draw, _ENDINGS)
            value = _changed(value, place, change, lambda: _mark(texts, draw), rename)
        return _without_marks(json.dumps(value), texts).encode("utf-8", "surrogatepass")

    return drawn()


def _mark(texts: list[str], draw: st.DrawFn) -> str:
    """A text that stands for raw JSON until everything is written."""
    raw = draw(
        st.sampled_from(NASTY) | st.integers().map(str) | st.text(max_size=20).map(json.dumps)
    )
    texts.append(raw)
    return f"{_MARK}{len(texts) - 1}{_MARK}"


def _without_marks(text: str, texts: Sequence[str]) -> str:
    for number, raw in enumerate(texts):
        text = text.replace(json.dumps(f"{_MARK}{number}{_MARK}"), raw)
    return text


def _places(value: Any, at: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*at, key))
    elif isinstance(value, list):
        for number in range(min(len(value), 20)):
            yield from _places(value[number], (*at, number))


_ENDINGS: Final = st.sampled_from(["x", "\ud800", "\0", "X" * 300, " ", "\u0301"])
_CHANGES: Final = ("replace", "replace", "replace", "leave out", "rename", "add", "repeat", "wrap")


def _changed(
    value: Any,
    place: tuple[Any, ...],
    change: str,
    make: Callable[[], str],
    rename: Callable[[], str],
) -> Any:
    if not place:
        return make() if change == "replace" else _grown(value, make)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    last = place[-1]
    if change == "replace":
        holder[last] = make()
    elif change == "leave out":
        del holder[last]
    elif change == "rename" and isinstance(holder, dict):
        holder[f"{last}{rename()}"] = holder.pop(last)
    elif change == "add":
        holder[last] = _grown(holder[last], make)
    elif change == "repeat" and isinstance(holder, list):
        holder += [holder[last]] * 3
    else:
        holder[last] = [holder[last]]
    return value


def _grown(value: Any, make: Callable[[], str]) -> Any:
    """With one more key or item, where it can have one."""
    if isinstance(value, dict):
        return {**value, "x-more": make()}
    return [*value, make()] if isinstance(value, list) else [value, make()]


_BYTES: Final = (
    b"\0",
    b"\xff",
    b"\x80",
    b"\x7f",
    b"\n",
    b'"',
    b"{",
    b"]",
    b"\xff\xff\xff\xff",
    b"\x80\x80\x80\x80\x10",
)


def bytes_like(seeds: Sequence[bytes], *, most: int = 6) -> st.SearchStrategy[bytes]:
    """One of ``seeds`` with up to ``most`` changes: bits, bytes, runs left out, repeated or taken from another seed."""

    @st.composite
    def drawn(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(seeds)))
        for _ in range(draw(st.integers(1, most))):
            _bend(data, draw, seeds)
        return bytes(data)

    return drawn()


def _bend(data: bytearray, draw: st.DrawFn, seeds: Sequence[bytes]) -> None:
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    end = min(len(data), at + draw(st.integers(1, 40)))
    match draw(st.integers(0, 6)):
        case 0 if data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        case 1 if data:
            data[at] = draw(st.integers(0, 255))
        case 2:
            del data[at:end]
        case 3:
            data[at:at] = data[at:end] * draw(st.integers(1, 8))
        case 4:
            data[at:at] = draw(st.sampled_from(_BYTES) | st.binary(max_size=20))
        case 5:
            del data[at:]
        case _:
            other = draw(st.sampled_from(seeds))
            begin = draw(st.integers(0, max(len(other) - 1, 0)))
            data[at:end] = other[begin : begin + draw(st.integers(1, 60))]
