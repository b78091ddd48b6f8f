"""Whether two versions of a model say the same about one request. Pure: arrays in, the output that differs out.

Rules kept here:

- Each output of the active version's contract is compared; what the other version does not have or has in another
  shape differs.
- Text, whole numbers and truth values are equal, or name the same label where the versions number labels differently.
- Scores (one a label) agree when the highest one names the same label. Other floats agree within the tolerance of the
  golden cases, the other version's own where it has some: ``|other - active| <= atol + rtol * |active|``.
- NaN agrees with NaN, and with nothing else.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from agent.bundle import Manifest, TensorSpec
from agent.bundle.observe import is_scores
from agent.runtime.dtypes import Array

__all__ = ["DEFAULT_ATOL", "DEFAULT_RTOL", "Agreement"]

DEFAULT_ATOL: Final = 1e-4
DEFAULT_RTOL: Final = 1e-3
_Compare = Callable[[Array, Array], bool]


class Agreement:
    """How the answers of two versions are compared; made once for both."""

    __slots__ = ("_compares",)

    def __init__(self, active: Manifest, other: Manifest) -> None:
        specs = {spec.name: spec for spec in other.outputs}
        self._compares: dict[str, _Compare | None] = {
            spec.name: _compare_of(spec, specs.get(spec.name), _tolerance(active, other, spec.name))
            for spec in active.outputs
        }

    def difference(self, active: Mapping[str, Array], other: Mapping[str, Array]) -> str:
        """The first output of which they say different things; empty when they agree."""
        for name, compare in self._compares.items():
            if compare is None:
                return name
            one, two = active[name], other[name]
            if one.shape != two.shape or not compare(one, two):
                return name
        return ""


def _compare_of(
    active: TensorSpec, other: TensorSpec | None, tolerance: tuple[float, float]
) -> _Compare | None:
    """How this output is compared; None when it cannot be and so differs."""
    if other is None:
        return None
    floats = {spec.dtype.startswith("FP") for spec in (active, other)}
    if len(floats) == 2 or (active.dtype == "BYTES") != (other.dtype == "BYTES"):
        return None
    relabelled = active.labels != other.labels and bool(active.labels and other.labels)
    if True not in floats:
        if relabelled and active.dtype != "BYTES":
            return lambda one, two: _named(active, one) == _named(other, two)
        return lambda one, two: bool((one == two).all())
    if is_scores(active) and is_scores(other):
        return lambda one, two: _highest_agree(active, one, other, two)
    atol, rtol = tolerance
    return lambda one, two: bool(np.isclose(two, one, rtol=rtol, atol=atol, equal_nan=True).all())


def _tolerance(active: Manifest, other: Manifest, name: str) -> tuple[float, float]:
    """The widest tolerance that a golden case of either allows this output; the other version's come first."""
    for manifest in (other, active):
        found = [it for case in manifest.golden for it in case.outputs if it.name == name]
        if found:
            return max(it.atol for it in found), max(it.rtol for it in found)
    return DEFAULT_ATOL, DEFAULT_RTOL


def _highest_agree(active: TensorSpec, one: Array, other: TensorSpec, two: Array) -> bool:
    rows, other_rows = (it.reshape(-1, it.shape[-1]) for it in (one, two))
    nan, other_nan = np.isnan(rows), np.isnan(other_rows)
    broken = nan.any(axis=1) | other_nan.any(axis=1)
    if (nan[broken] != other_nan[broken]).any():
        return False
    whole = ~broken
    best, other_best = rows[whole].argmax(axis=1), other_rows[whole].argmax(axis=1)
    if active.labels == other.labels:
        return bool((best == other_best).all())
    return _named(active, best) == _named(other, other_best)


def _named(spec: TensorSpec, indexes: Array) -> list[str]:
    """Labels of class numbers; what is no class number stays a number."""
    known = range(len(spec.labels))
    return [
        spec.labels[int(index)] if index in known else f"#{index}"
        for index in indexes.reshape(-1).tolist()
    ]
