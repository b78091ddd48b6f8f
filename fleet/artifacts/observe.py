"""``[observe]`` of a project as the manifest says it: edges of bins come from the golden outputs where only their
number is given.

Rules kept here: bins hold equal shares of what the golden cases expect, so that a shift of the answers shows in them; a
case set that does not say enough for that is an error, not fewer bins in silence.
"""

from collections.abc import Sequence

import numpy as np

from agent.bundle import Observe
from agent.runtime.dtypes import Array, from_raw
from fleet.artifacts.errors import ProjectError
from fleet.artifacts.golden import Golden
from fleet.artifacts.project import PROJECT_FILE, ObserveDraft

__all__ = ["observe_of"]


def observe_of(draft: ObserveDraft | None, golden: Sequence[Golden]) -> Observe | None:
    """What the manifest says; None where the project says nothing.

    Raises:
        ProjectError: the golden outputs are too few or too alike for the number of bins.
    """
    if draft is None:
        return None
    bins = (
        _quantiles(draft.output, draft.bins, golden) if isinstance(draft.bins, int) else draft.bins
    )
    return Observe(draft.output, bins, draft.confidence, draft.low_confidence)


def _quantiles(output: str, count: int, golden: Sequence[Golden]) -> tuple[float, ...]:
    """The inner edges of ``count`` bins that hold equal shares of the values."""
    values = [array for case in golden for array in _arrays(case, output)]
    flat = np.concatenate([np.empty(0), *values])
    flat = flat[np.isfinite(flat)]
    different = len(np.unique(flat))
    edges = np.unique(np.quantile(flat, np.arange(1, count) / count)) if flat.size else flat
    if different < count or len(edges) < count - 1:
        raise ProjectError(
            f"{PROJECT_FILE} [observe] bins = {count}: the golden cases expect {different} different values "
            f"of {output!r}, which do not make up so many bins; add cases, or give bins as a list of edges"
        )
    return tuple(float(edge) for edge in edges)


def _arrays(case: Golden, output: str) -> Sequence[Array]:
    return [
        from_raw(case.files[it.tensor.file], it.tensor.dtype, it.tensor.shape, it.tensor.file)
        .astype(np.float64)
        .reshape(-1)
        for it in case.outputs
        if it.name == output and it.tensor.dtype != "BYTES"
    ]
