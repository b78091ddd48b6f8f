"""Whether arrays keep a bundle's contract. Inputs that do not are refused, outputs that do not are
counted.

Rules kept here:

- A request that breaks the contract never reaches the model: its failure must not look like the
  model's.
- A free dimension (-1) is at least 1: an empty batch is the caller's mistake, not a test of the
  model.
- ``minimum``/``maximum`` bound each element, and a bounded element is finite. Labels name the
  classes: text must be one of them, an integer is an index into them, the last dimension of scores
  counts them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.bundle import TensorSpec
from agent.runtime.dtypes import Array, dtype_of
from agent.runtime.errors import InputContractError

__all__ = ["OutputFindings", "check_inputs", "check_outputs", "finding"]

Arrays = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class OutputFindings:
    """What is wrong with the outputs of one run. ``violations`` and ``non_finite`` count the tensors that break the
    contract and those with NaN or infinity in them; ``problems`` says each in words."""

    violations: int = 0
    non_finite: int = 0
    problems: tuple[str, ...] = ()


def check_inputs(specs: Sequence[TensorSpec], arrays: Arrays) -> None:
    """Refuse inputs that do not keep the contract.

    Raises:
        InputContractError: naming the tensor, what is expected and what came.
    """
    if len(arrays) > len(specs) or any(spec.name not in arrays for spec in specs):
        expected = [spec.name for spec in specs]
        got = sorted(arrays)
        raise InputContractError(f"expected the inputs {expected}, got {got}")
    for spec in specs:
        problem = finding(spec, arrays[spec.name])
        if problem:
            raise InputContractError(f"input {spec.name!r}: {problem}")


def check_outputs(specs: Sequence[TensorSpec], arrays: Arrays) -> OutputFindings:
    """What is wrong with the outputs, if anything. Never raises."""
    violations = non_finite = 0
    problems: list[str] = []
    for spec in specs:
        array = arrays[spec.name]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            non_finite += 1
            problems.append(f"output {spec.name!r}: NaN or infinity")
        problem = finding(spec, array)
        if problem:
            violations += 1
            problems.append(f"output {spec.name!r}: {problem}")
    return OutputFindings(violations, non_finite, tuple(problems)) if problems else _NOTHING


_NOTHING = OutputFindings()


def finding(spec: TensorSpec, array: Array) -> str:
    """How ``array`` breaks ``spec``, in words; empty when it keeps it."""
    dtype = dtype_of(array)
    if dtype != spec.dtype:
        return f"expected data type {spec.dtype}, got {dtype}"
    shape = array.shape
    if len(shape) != len(spec.shape) or any(
        (size != want) if want >= 0 else (size < 1)
        for size, want in zip(shape, spec.shape, strict=True)
    ):
        wanted = [want if want >= 0 else "any" for want in spec.shape]
        return f"expected shape {wanted}, got {list(shape)}".replace("'", "")
    if array.size and (spec.minimum is not None or spec.maximum is not None):
        problem = _range_finding(spec, array)
        if problem:
            return problem
    return _label_finding(spec, array) if spec.labels else ""


def _range_finding(spec: TensorSpec, array: Array) -> str:
    if array.dtype.kind not in "biuf":
        return ""
    low, high = array.min(), array.max()
    minimum = float("-inf") if spec.minimum is None else spec.minimum
    maximum = float("inf") if spec.maximum is None else spec.maximum
    # Written so that NaN, which compares false with everything, is a finding too.
    if np.isfinite(low) and np.isfinite(high) and low >= minimum and high <= maximum:
        return ""
    return f"expected values from {minimum:g} to {maximum:g}, got {low} to {high}"


def _label_finding(spec: TensorSpec, array: Array) -> str:
    count = len(spec.labels)
    if array.dtype.kind == "O":
        unknown = [str(value) for value in array.reshape(-1) if value not in spec.labels]
        return f"{unknown[0][:40]!r} is none of the {count} labels" if unknown else ""
    if array.dtype.kind in "iu":
        if array.size and (array.min() < 0 or array.max() >= count):
            return f"expected class numbers below {count}, got {array.min()} to {array.max()}"
        return ""
    if array.dtype.kind == "f" and array.ndim and array.shape[-1] != count:
        return f"expected {count} scores, one a label, in the last dimension, got {array.shape[-1]}"
    return ""
