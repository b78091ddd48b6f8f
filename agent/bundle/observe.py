"""How a bundle's answers are observed: which output is counted by what it says, and how sure the model is.

Rules kept here:

- Only what has few values is counted: labels, class numbers, bins of a number. Text is counted when the contract names
  the labels, or when the bundle asks for it: what a model reads may be nobody's business but the device's.
- A bundle that says nothing has its one output of labels or whole numbers counted, if it has exactly one.
"""

from enum import Enum
from itertools import pairwise
from typing import Final

from agent.bundle.errors import ManifestError
from agent.bundle.manifest import Manifest, Observe, TensorSpec

__all__ = ["MAX_EDGES", "Look", "check_observe", "is_scores", "look_of", "observed"]

MAX_EDGES: Final = 29
"""Of bins: with one bin more than edges, one for NaN and one for the rest a window has 32 names."""


class Look(Enum):
    """What an output's values are counted by."""

    SCORES = "the label with the highest score, a row"
    LABELS = "the label of a class number"
    NUMBERS = "the whole number itself"
    TEXT = "the text itself"
    BINS = "the bin that the value falls into"


def is_scores(spec: TensorSpec) -> bool:
    """Whether the last dimension holds one score a label."""
    labels = len(spec.labels)
    return spec.dtype.startswith("FP") and labels > 1 and spec.shape[-1:] in ((labels,), (-1,))


def look_of(spec: TensorSpec, *, bins: bool) -> Look | None:
    """How the output can be counted; None when it cannot be."""
    if bins:
        return None if spec.dtype in {"BYTES", "BOOL"} else Look.BINS
    if spec.dtype == "BYTES":
        return Look.TEXT
    if spec.dtype.startswith("FP"):
        return Look.SCORES if is_scores(spec) else None
    return Look.LABELS if spec.labels else Look.NUMBERS


def observed(manifest: Manifest) -> Observe | None:
    """What is observed of a bundle: what it asks for, or the usual; None for nothing."""
    if manifest.observe is not None:
        return manifest.observe
    found = [
        spec
        for spec in manifest.outputs
        if all(size == 1 for size in spec.shape[1:])
        and (
            spec.dtype.removeprefix("U").startswith("INT")
            or (spec.dtype == "BYTES" and spec.labels)
        )
    ]
    return Observe(output=found[0].name) if len(found) == 1 else None


def check_observe(manifest: Manifest) -> None:
    """Check that what is to be observed is there and can be.

    Raises:
        ManifestError: it is not.
    """
    observe = manifest.observe
    if observe is None:
        return
    specs = {spec.name: spec for spec in manifest.outputs}
    for key, name in (("output", observe.output), ("confidence", observe.confidence)):
        if name and name not in specs:
            raise ManifestError(
                f"observe.{key} = {name!r} is no output (there are: {', '.join(sorted(specs))[:300]})"
            )
    if not observe.output and not observe.confidence:
        raise ManifestError("observe names neither an output nor a confidence; leave it out")
    if observe.bins and not observe.output:
        raise ManifestError("observe.bins needs observe.output, whose values fall into them")
    if observe.output and look_of(specs[observe.output], bins=bool(observe.bins)) is None:
        spec = specs[observe.output]
        hint = "has no bins" if observe.bins else "has neither labels nor observe.bins to count by"
        raise ManifestError(f"observe.output = {spec.name!r} is {spec.dtype} and {hint}")
    if observe.confidence and not specs[observe.confidence].dtype.startswith("FP"):
        raise ManifestError(
            f"observe.confidence = {observe.confidence!r} is {specs[observe.confidence].dtype}, "
            f"a confidence is a float"
        )
    if any(low >= high for low, high in pairwise(observe.bins)):
        raise ManifestError(f"observe.bins = {list(observe.bins)} must rise from edge to edge")
