"""What an answer says, for counting: which label or bin each row is, and whether the model is sure.

Rules kept here:

- Only names and numbers of rows leave: no input, no score, no value of an output that is not counted by name.
- Of one answer at most ``MAX_LOOKED`` rows are looked at, evenly spread: a mask of a million pixels must not cost what
  its run costs.
- NaN is a name of its own, and a confidence that is NaN is low: what cannot be compared is never taken for sure.
- Never raises: an output that breaks its contract is counted as far as it can be.
"""

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
NAN: Final = "nan"
_EMPTY: Final[Mapping[str, int]] = {}
_Count = Callable[[Array], Mapping[str, int]]


def observer_of(manifest: Manifest) -> "Observer | None":
    """How answers of the bundle are observed; None when there is nothing to count."""
    observe = observed(manifest)
    return None if observe is None else Observer(manifest, observe)


class Observer:
    """Looks at the answers of one version. Safe for threads: it keeps nothing."""

    __slots__ = ("_bound", "_classes", "_confidence", "_count", "_output")

    def __init__(self, manifest: Manifest, observe: Observe) -> None:
        specs = {spec.name: spec for spec in manifest.outputs}
        self._output = observe.output
        self._count: _Count | None = None
        if observe.output:
            self._count = _count_of(specs[observe.output], observe.bins)
        self._confidence = observe.confidence
        self._bound = observe.low_confidence
        self._classes = _row_size(specs[observe.confidence]) if observe.confidence else 1

    def look(self, outputs: Mapping[str, Array]) -> Seen:
        """What to count of one answer."""
        count = self._count
        names = _EMPTY if count is None else count(outputs[self._output])
        if not self._confidence:
            return Seen(names)
        return Seen(names, *self._sure(outputs[self._confidence]))

    def _sure(self, array: Array) -> tuple[int, int]:
        """Rows looked at, and those whose highest score is below the bound."""
        rows = _rows(array, self._classes)
        if len(rows) == 1:
            return 1, 0 if rows.max() >= self._bound else 1
        if not len(rows):
            return 0, 0
        return len(rows), len(rows) - int(np.count_nonzero(rows.max(axis=1) >= self._bound))


def bin_names(edges: Sequence[float]) -> tuple[str, ...]:
    """Names of the bins between rising edges: one more than there are edges, each with its lower edge in it."""
    inner = [f"{low:.6g} to {high:.6g}" for low, high in pairwise(edges)]
    return (f"< {edges[0]:.6g}", *inner, f">= {edges[-1]:.6g}")


def _count_of(spec: TensorSpec, bins: Sequence[float]) -> _Count | None:
    match look_of(spec, bins=bool(bins)):
        case Look.SCORES:
            return _scores(_label_names(spec))
        case Look.LABELS:
            return _labels(_label_names(spec))
        case Look.NUMBERS:
            return _numbers
        case Look.TEXT:
            known = dict(zip(spec.labels, _label_names(spec), strict=True))
            return (lambda array: _known_text(array, known)) if known else _any_text
        case Look.BINS:
            return _bins(np.asarray(bins, dtype=np.float64), bin_names(bins))
        case None:
            return None


def _scores(names: tuple[str, ...]) -> _Count:
    classes = len(names)
    singles = [{name: 1} for name in names]
    nothing = {NAN: 1}

    def count(array: Array) -> Mapping[str, int]:
        if array.size == classes:
            scores = array.reshape(-1)
            best = int(scores.argmax())
            # argmax stops at NaN, so the score there tells.
            return singles[best] if scores[best] == scores[best] else nothing
        rows = _rows(array, classes)
        sound = rows[~np.isnan(rows).any(axis=1)]
        counts = _named(np.bincount(sound.argmax(axis=1), minlength=classes), names)
        return counts if len(sound) == len(rows) else {**counts, NAN: len(rows) - len(sound)}

    return count


def _labels(names: tuple[str, ...]) -> _Count:
    classes = len(names)
    singles = [{name: 1} for name in names]

    def count(array: Array) -> Mapping[str, int]:
        if array.size == 1:
            index = int(array.item())
            return singles[index] if 0 <= index < classes else {OTHER: 1}
        flat = _spread(array.reshape(-1))
        inside = flat[(flat >= 0) & (flat < classes)].astype(np.int64)
        counts = _named(np.bincount(inside, minlength=classes), names)
        return counts if len(inside) == len(flat) else {**counts, OTHER: len(flat) - len(inside)}

    return count


def _numbers(array: Array) -> Mapping[str, int]:
    if array.size == 1:
        return {str(array.item()): 1}
    values, counts = np.unique(_spread(array.reshape(-1)), return_counts=True)
    return dict(zip(map(str, values.tolist()), counts.tolist(), strict=True))


def _any_text(array: Array) -> Mapping[str, int]:
    return Counter(_name(value) for value in _spread(array.reshape(-1)).tolist())


def _known_text(array: Array, known: Mapping[str, str]) -> Mapping[str, int]:
    return Counter(known.get(value, OTHER) for value in _spread(array.reshape(-1)).tolist())


def _bins(edges: Array, names: tuple[str, ...]) -> _Count:
    every = (*names, NAN)

    def count(array: Array) -> Mapping[str, int]:
        values = _spread(array.reshape(-1)).astype(np.float64)
        places = np.searchsorted(edges, values, side="right")
        places[np.isnan(values)] = len(names)
        return _named(np.bincount(places, minlength=len(every)), every)

    return count


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
