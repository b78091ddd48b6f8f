"""What an answer says, for counting: which label or bin each row is, and whether the model is sure.

Rules kept here:

- Only names and numbers of rows leave: no input, no score, no value of an output that is not counted by name.
- Of one answer at most ``MAX_LOOKED`` rows are looked at, evenly spread: a mask of a million pixels must not cost what
  its run costs.
- NaN is a name of its own, and a confidence that is NaN is low: what cannot be compared is never taken for sure.
- Never raises: an output that breaks its contract is counted as far as it can be.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from agent.bundle import Manifest, Observe, TensorSpec
from agent.bundle.observe import Look, look_of, observed
from agent.runtime.counters import OTHER, Seen
from agent.runtime.dtypes import Array
from agent.runtime.verdict import clean_text

__all__ = ["MAX_LOOKED", "NAN", "Observer", "bin_names", "observer_of"]

MAX_LOOKED: Final = 4096
MAX_NAME_CHARS: Final = 64
FEW_SCORES: Final = 32
NAN: Final = "nan"
_NOTHING: Final = Seen({})
_Look = Callable[[Array], Seen]


def observer_of(manifest: Manifest) -> "Observer | None":
    """How answers of the bundle are observed; None when there is nothing to count."""
    observe = observed(manifest)
    return None if observe is None else Observer(manifest, observe)


class Observer:
    """Looks at the answers of one version. Safe for threads: it keeps nothing."""

    __slots__ = ("_bound", "_confidence", "_look", "_output", "_row_size")

    def __init__(self, manifest: Manifest, observe: Observe) -> None:
        specs = {spec.name: spec for spec in manifest.outputs}
        self._output, self._confidence = observe.output, observe.confidence
        self._bound = observe.low_confidence
        self._look: _Look | None = None
        if observe.output:
            spec = specs[observe.output]
            how = look_of(spec, bins=bool(observe.bins))
            if how is Look.SCORES:
                both = observe.confidence == observe.output
                self._look = _scores(_label_names(spec), observe.low_confidence if both else None)
                self._confidence = "" if both else observe.confidence
            elif how is not None:
                self._look = _look_at(how, spec, observe.bins)
        self._row_size = _row_size(specs[self._confidence]) if self._confidence else 1

    def look(self, outputs: Mapping[str, Array]) -> Seen:
        """What to count of one answer."""
        look = self._look
        seen = _NOTHING if look is None else look(outputs[self._output])
        if not self._confidence:
            return seen
        rows = _rows(outputs[self._confidence], self._row_size)
        return Seen(seen.outputs, len(rows), _low(rows, self._bound))


def bin_names(edges: Sequence[float]) -> tuple[str, ...]:
    """Names of the bins between rising edges: one more than there are edges, each with its lower edge in it."""
    inner = [f"{low:.6g} to {high:.6g}" for low, high in pairwise(edges)]
    return (f"< {edges[0]:.6g}", *inner, f">= {edges[-1]:.6g}")


def _look_at(how: Look, spec: TensorSpec, bins: Sequence[float]) -> _Look:
    if how is Look.LABELS:
        return _labels(_label_names(spec))
    if how is Look.BINS:
        return _bins(list(bins))
    if how is Look.NUMBERS:
        return _numbers
    known = dict(zip(spec.labels, _label_names(spec), strict=True))
    return (lambda array: _known_text(array, known)) if known else _any_text


# Nearly every request has one row, so each kind of output has a short way for it: what is said of one row is made
# beforehand, and no array is.


def _scores(names: tuple[str, ...], bound: float | None) -> _Look:
    """By the label with the highest score; with a ``bound``, of how many rows that score is below it as well."""
    classes = len(names)
    rows_looked = 0 if bound is None else 1
    sure = [Seen({name: 1}, rows_looked) for name in names]
    low = [Seen({name: 1}, rows_looked, rows_looked) for name in names]
    nothing = Seen({NAN: 1}, rows_looked, rows_looked)

    def look(array: Array) -> Seen:
        if array.size == classes:
            best, top = _highest(array)
            if math.isnan(top):
                return nothing
            return sure[best] if bound is None or top >= bound else low[best]
        rows = _rows(array, classes)
        sound = rows[~np.isnan(rows).any(axis=1)]
        counts = _named(np.bincount(sound.argmax(axis=1), minlength=classes), names)
        if len(sound) < len(rows):
            counts[NAN] = len(rows) - len(sound)
        return Seen(counts) if bound is None else Seen(counts, len(rows), _low(rows, bound))

    return look


def _highest(array: Array) -> tuple[int, float]:
    """Place and value of the highest score of one row; the value is NaN when one of them is."""
    if array.size <= FEW_SCORES:
        # For few scores plain numbers are quicker than numpy's calls.
        scores = array.reshape(-1).tolist()
        top = max(scores)
        if not math.isnan(sum(scores)):
            return scores.index(top), top
    best = int(array.argmax())  # stops at NaN
    return best, float(array.item(best))


def _low(rows: Array, bound: float) -> int:
    """Of how many rows the highest score is below the bound, or no number."""
    if len(rows) == 1:
        return 0 if rows.max() >= bound else 1
    return len(rows) - int(np.count_nonzero(rows.max(axis=1) >= bound)) if len(rows) else 0


def _labels(names: tuple[str, ...]) -> _Look:
    classes = len(names)
    singles = [Seen({name: 1}) for name in names]
    none_of_them = Seen({OTHER: 1})

    def look(array: Array) -> Seen:
        if array.size == 1:
            index = int(array.item())
            return singles[index] if 0 <= index < classes else none_of_them
        flat = _spread(array.reshape(-1))
        inside = flat[(flat >= 0) & (flat < classes)].astype(np.int64)
        counts = _named(np.bincount(inside, minlength=classes), names)
        if len(inside) < len(flat):
            counts[OTHER] = len(flat) - len(inside)
        return Seen(counts)

    return look


def _numbers(array: Array) -> Seen:
    if array.size == 1:
        return Seen({str(array.item()): 1})
    values, counts = np.unique(_spread(array.reshape(-1)), return_counts=True)
    return Seen(dict(zip(map(str, values.tolist()), counts.tolist(), strict=True)))


def _any_text(array: Array) -> Seen:
    return Seen(Counter(_name(value) for value in _spread(array.reshape(-1)).tolist()))


def _known_text(array: Array, known: Mapping[str, str]) -> Seen:
    return Seen(Counter(known.get(value, OTHER) for value in _spread(array.reshape(-1)).tolist()))


def _bins(edges: list[float]) -> _Look:
    names = (*bin_names(edges), NAN)
    singles = [Seen({name: 1}) for name in names]

    def look(array: Array) -> Seen:
        if array.size == 1:
            value = array.item()
            return singles[-1 if math.isnan(value) else bisect_right(edges, value)]
        values = _spread(array.reshape(-1)).astype(np.float64)
        places = np.searchsorted(edges, values, side="right")
        places[np.isnan(values)] = len(names) - 1
        return Seen(_named(np.bincount(places, minlength=len(names)), names))

    return look


def _named(counts: Array, names: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for place in counts.nonzero()[0].tolist():
        # Added up: two long labels may have been cut to one name.
        found[names[place]] = found.get(names[place], 0) + int(counts[place])
    return found


def _rows(array: Array, size: int) -> Array:
    """The array as rows of ``size``, at most ``MAX_LOOKED``; none when it does not come out even."""
    if not array.size or array.size % size:
        return array.reshape(-1)[:0].reshape(0, size)
    return _spread(array.reshape(-1, size))


def _spread(rows: Array) -> Array:
    return rows if len(rows) <= MAX_LOOKED else rows[:: -(-len(rows) // MAX_LOOKED)]


def _row_size(spec: TensorSpec) -> int:
    """Scores a row: one a label, else those of the last dimension behind the batch's."""
    return len(spec.labels) or max((1, *spec.shape[1:][-1:]))


def _label_names(spec: TensorSpec) -> tuple[str, ...]:
    return tuple(_name(label) for label in spec.labels)


def _name(value: object) -> str:
    return clean_text(str(value), MAX_NAME_CHARS) or "(empty)"
