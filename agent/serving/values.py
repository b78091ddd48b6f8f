"""Lists of plain values to arrays, for both front ends: typed contents and JSON.

Rules kept here:

- A value that does not fit its data type is refused, never wrapped or made infinite. (numpy before
  2.0 wraps silently, so the range is checked here.)
- A value keeps its kind: true is no number, 1.5 no integer, 1 not true.
- Counts are checked against the shape before an array is made.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from agent.runtime.dtypes import NUMPY_OF, Array, check_rank
from agent.runtime.errors import InputContractError

__all__ = ["MAX_NAME_CHARS", "check_count", "check_name", "numbers"]

MAX_NAME_CHARS: Final = 256
"""Of a tensor; a bundle's have 128 at most. Refusals repeat them, so they need an end."""

_ALLOWED: Final[Mapping[str, frozenset[type]]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
}


def check_name(name: str, what: str) -> str:
    """Return the name of an ``what``, unless it is longer than any is.

    Raises:
        InputContractError: it is.
    """
    if len(name) > MAX_NAME_CHARS:
        raise InputContractError(
            f"an {what} has a name of {len(name)} characters; at most {MAX_NAME_CHARS} are taken"
        )
    return name


def check_count(count: int, shape: Sequence[int], name: str, where: str) -> None:
    """Refuse ``count`` values that do not make up ``shape``.

    Raises:
        InputContractError: they do not.
    """
    check_rank(shape, name)
    if any(dim < 0 for dim in shape) or count != math.prod(shape):
        raise InputContractError(
            f"tensor {name!r}: shape {list(shape)} does not fit the {count} values in {where}"
        )


def numbers(values: Iterable[Any], dtype: str, shape: Sequence[int], name: str) -> Array:
    """Numbers or truth values, as many as ``shape`` holds, as an array of ``dtype``.

    Raises:
        InputContractError: a value is of another kind or does not fit the data type.
    """
    values = list(values)
    target = NUMPY_OF[dtype]
    wrong = set(map(type, values)) - _ALLOWED[target.kind]
    if wrong:
        got = ", ".join(sorted(_json_name(kind) for kind in wrong))
        raise InputContractError(f"tensor {name!r}: {got} among the values is not {dtype}")
    if target.kind in "iu" and values:
        info = np.iinfo(target)
        if min(values) < info.min or max(values) > info.max:
            raise InputContractError(
                f"tensor {name!r}: a value does not fit {dtype} ({info.min} to {info.max})"
            )
    if target.kind != "f" or target.itemsize == 8:
        return _made(values, target, dtype, name).reshape(shape)
    wide = _made(values, np.dtype(np.float64), dtype, name)
    with np.errstate(over="ignore"):
        array = wide.astype(target)
    if (np.isinf(array) != np.isinf(wide)).any():
        raise InputContractError(f"tensor {name!r}: a value does not fit {dtype}")
    return array.reshape(shape)


def _made(values: Sequence[Any], target: "np.dtype[Any]", dtype: str, name: str) -> Array:
    try:
        return np.array(values, dtype=target)
    except OverflowError as error:  # an integer beyond what a float can hold
        raise InputContractError(f"tensor {name!r}: a value does not fit {dtype}") from error


def _json_name(kind: type) -> str:
    names = {bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return names.get(kind, {int: "a number", float: "a fraction"}.get(kind, "null"))
