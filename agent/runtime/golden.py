"""Golden cases: inputs in the bundle whose outputs are known, run through the whole pipeline on the
device itself.

Rules kept here:

- A case names its tensors' files; they are opened only inside the bundle's folder and must have
  exactly their size.
- ``|got - expected| <= atol + rtol * |expected|`` for each element; NaN only where NaN is expected;
  text is equal.
- Every case is run; the first tensor outside its tolerance is named, with the largest difference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.bundle import GoldenCase, GoldenOutput, GoldenTensor, Manifest
from agent.bundle.folder import open_bundle_file
from agent.runtime.contract import check_inputs
from agent.runtime.dtypes import Array, dtype_of, from_raw
from agent.runtime.errors import InputContractError, ModelLoadError

__all__ = ["CaseResult", "compare", "load_inputs", "load_tensor", "run_case"]

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case. ``problem`` is empty when every output is within tolerance; ``non_finite`` when the
    problem is NaN or infinity where a number is expected. ``max_abs_diff`` is over all numeric
    outputs."""

    name: str
    max_abs_diff: float
    problem: str = ""
    non_finite: bool = False


def load_tensor(folder: str | Path, tensor: GoldenTensor) -> Array:
    """The array in a golden file.

    Raises:
        ModelLoadError: the file is missing or does not hold that tensor.
    """
    try:
        with open_bundle_file(Path(folder), tensor.file) as file:
            raw = file.read()
    except OSError as error:
        raise ModelLoadError(f"golden file {tensor.file} cannot be read: {error}") from error
    try:
        return from_raw(raw, tensor.dtype, tensor.shape, tensor.file)
    except InputContractError as error:
        raise ModelLoadError(f"golden file: {error}") from error


def load_inputs(folder: str | Path, manifest: Manifest, case: GoldenCase) -> dict[str, Array]:
    """A case's inputs.

    Raises:
        ModelLoadError: a file is not its tensor, or the inputs break the bundle's own contract.
    """
    inputs = {name: load_tensor(folder, tensor) for name, tensor in case.inputs}
    try:
        check_inputs(manifest.inputs, inputs)
    except InputContractError as error:
        raise ModelLoadError(f"golden case {case.name!r} breaks the contract: {error}") from error
    return inputs


def run_case(folder: str | Path, manifest: Manifest, case: GoldenCase, run: Run) -> CaseResult:
    """Run one case and compare its outputs.

    Raises:
        ModelLoadError: the case's files are wrong. InferenceError: the model failed.
    """
    got = run(load_inputs(folder, manifest, case))
    largest = 0.0
    first: CaseResult | None = None
    for output in case.outputs:
        expected = load_tensor(folder, output.tensor)
        diff, problem, non_finite = compare(output, expected, got[output.name])
        largest = max(largest, diff)
        if problem and first is None:
            text = f"golden case {case.name!r}, output {output.name!r}: {problem}"
            first = CaseResult(case.name, diff, text, non_finite)
    return first or CaseResult(case.name, largest)


def compare(output: GoldenOutput, expected: Array, got: Array) -> tuple[float, str, bool]:
    """Largest absolute difference, what is wrong (empty: nothing), and whether that is NaN or
    infinity."""
    if dtype_of(got) != dtype_of(expected) or got.shape != expected.shape:
        want, have = _describe(expected), _describe(got)
        return 0.0, f"expected {want}, got {have}", False
    if expected.dtype.kind == "O":
        wrong = [(a, b) for a, b in zip(expected.flat, got.flat, strict=True) if a != b]
        return 0.0, f"expected {wrong[0][0]!r}, got {wrong[0][1]!r}" if wrong else "", False
    if expected.dtype.kind not in "f":
        equal = expected == got
        diff = _largest(expected.astype(np.float64), got.astype(np.float64))
        within = equal | (np.abs(expected.astype(np.float64) - got) <= _allowed(output, expected))
        return diff, "" if within.all() else _outside(output, diff, within), False
    if not np.isfinite(got[np.isfinite(expected)]).all():
        return 0.0, "NaN or infinity came out where a number is expected", True
    diff = _largest(expected, got)
    within = np.isclose(got, expected, rtol=output.rtol, atol=output.atol, equal_nan=True)
    return diff, "" if within.all() else _outside(output, diff, within), False


def _allowed(output: GoldenOutput, expected: Array) -> Array:
    allowed: Array = output.atol + output.rtol * np.abs(expected.astype(np.float64))
    return allowed


def _largest(expected: Array, got: Array) -> float:
    finite = np.isfinite(expected) & np.isfinite(got)
    if not finite.any():
        return 0.0
    return float(np.abs(expected[finite].astype(np.float64) - got[finite].astype(np.float64)).max())


def _outside(output: GoldenOutput, diff: float, within: Array) -> str:
    count = int(within.size - within.sum())
    return (
        f"{count} of {within.size} values are outside the tolerance (atol {output.atol:g}, rtol {output.rtol:g}); "
        f"largest difference {diff:.6g}"
    )


def _describe(array: Array) -> str:
    return f"{dtype_of(array)} of shape {list(array.shape)}"
