"""JSON text as the front end reads and writes it: by orjson, and by the standard library for what orjson refuses.

orjson is many times faster with the long lists of numbers that tensors are, and stricter: what it refuses (NaN and
Infinity, halves of surrogate pairs, encodings other than UTF-8) is read and written by the standard library, which
takes it or says why not. So the two take together what the standard library takes alone.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import orjson

from agent.runtime.dtypes import Array

__all__ = ["dump", "load", "values_of"]

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_SUBCLASS


class _NotFinite(list[Any]):
    """Numbers with NaN or infinity among them: orjson would write null, so it must not get them."""


def load(text: bytes) -> Any:
    """The value in ``text``. Raises ValueError or RecursionError: it is no JSON, or nested too deep."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def values_of(array: Array) -> Any:
    """The values of an array, row-major, for ``dump``: with the fewest digits that mean the same number."""
    flat = array.reshape(-1)
    kind = flat.dtype.kind
    if kind == "f" and not np.isfinite(flat).all():
        return _NotFinite(flat.tolist())
    if kind == "f" and flat.dtype.itemsize == 2:
        flat = flat.astype(np.float32)
    return np.ascontiguousarray(flat) if kind in "fiub" else flat.tolist()


def dump(said: Mapping[str, Any]) -> bytes:
    """UTF-8 text without spaces. Takes plain values and what ``values_of`` gives."""
    try:
        return orjson.dumps(said, option=_OPTIONS)
    except TypeError:
        text = json.dumps(
            said, separators=(",", ":"), ensure_ascii=False, default=np.ndarray.tolist
        )
        return text.encode()
