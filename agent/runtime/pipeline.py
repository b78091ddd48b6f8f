"""A bundle's stages as onnxruntime sessions, run in order over one flat namespace of tensors.

Rules kept here:

- The contract must fit the models before anything runs: names, data types, ranks, fixed dimensions.
- A saved form takes the place of the bundle's own files only as a whole, and must fit the same
  contract.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from agent.bundle import Manifest, Stage, TensorSpec, check_name
from agent.runtime.dtypes import NUMPY_OF, Array, dtype_of_onnx
from agent.runtime.engine import ort_errors
from agent.runtime.errors import InferenceError, ModelLoadError
from agent.runtime.saved_form import stage_file
from agent.runtime.session import ORT_ERRORS, EngineOptions, open_session, threads_of
from agent.runtime.verdict import clean_text

__all__ = ["Pipeline", "example_inputs"]

MAX_FREE_DIMENSIONS: Final = 1


@dataclass(frozen=True, slots=True)
class _Step:
    """One stage, ready to run: its session and how its tensors are called on both sides."""

    name: str
    session: Any
    feeds: tuple[tuple[str, str], ...]
    onnx_outputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Pipeline:
    """A loaded bundle. ``run`` may be called from several threads at once."""

    __slots__ = ("_outputs", "_steps", "manifest")

    def __init__(self, manifest: Manifest, steps: tuple[_Step, ...]) -> None:
        self.manifest = manifest
        self._steps = steps
        self._outputs = tuple(spec.name for spec in manifest.outputs)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        manifest: Manifest,
        engine: EngineOptions | None = None,
        *,
        form: Path | None = None,
    ) -> "Pipeline":
        """Make sessions of the bundle's models and check that the contract fits them.

        ``form``: the folder of a saved form, verified by the caller, to be loaded instead.

        Raises:
            ModelLoadError: a model cannot be loaded, or stages or contract do not fit; names the
            stage.
        """
        available = {spec.name: spec.dtype for spec in manifest.inputs}
        steps = []
        engine = engine or EngineOptions()
        threads = threads_of(manifest.intra_op_threads, engine)
        for number, stage in enumerate(manifest.stages):
            where = f"stage {stage.name!r}: {stage.file}"
            path = Path(folder) / check_name(stage.file)
            if form is not None:
                path = form / stage_file(number)
            session = open_session(path, where, threads, engine, saved=form is not None)
            _check_stage(stage, session, available, manifest.inputs)
            onnx_types = {node.name: node.type for node in session.get_outputs()}
            for onnx_name, tensor in stage.outputs:
                available[tensor] = dtype_of_onnx(onnx_types[onnx_name]) or onnx_types[onnx_name]
            onnx_outputs = tuple(onnx_name for onnx_name, _ in stage.outputs)
            outputs = tuple(tensor for _, tensor in stage.outputs)
            steps.append(_Step(stage.name, session, stage.inputs, onnx_outputs, outputs))
        for spec in manifest.outputs:
            if available.get(spec.name) != spec.dtype:
                got = available.get(spec.name, "nothing")
                raise ModelLoadError(
                    f"output {spec.name!r} is {spec.dtype} in the contract, but the stages make {got}"
                )
        return cls(manifest, tuple(steps))

    def run(self, inputs: Mapping[str, Array], options: Any = None) -> dict[str, Array]:
        """The contract's outputs for inputs that keep the contract (``contract.check_inputs``).

        ``options`` is an ``onnxruntime.RunOptions``: setting its ``terminate`` from another thread
        ends the run.

        Raises:
            InferenceError: a stage failed; names it.
        """
        tensors = dict(inputs)
        for step in self._steps:
            feeds = {onnx_name: tensors[tensor] for tensor, onnx_name in step.feeds}
            try:
                results = step.session.run(step.onnx_outputs, feeds, options)
            except ORT_ERRORS as error:
                raise InferenceError(
                    f"stage {step.name!r} failed: {clean_text(str(error))}", _kind(error, options)
                ) from error
            tensors.update(zip(step.outputs, results, strict=True))
        return {name: tensors[name] for name in self._outputs}


def example_inputs(manifest: Manifest) -> dict[str, Array]:
    """Inputs that keep the contract, for warming up where there is no golden case: zeros or the
    least allowed value, free dimensions 1, text the first label or empty."""
    inputs: dict[str, Array] = {}
    for spec in manifest.inputs:
        shape = [dim if dim >= 0 else MAX_FREE_DIMENSIONS for dim in spec.shape]
        if spec.dtype == "BYTES":
            inputs[spec.name] = np.full(shape, spec.labels[0] if spec.labels else "", dtype=object)
            continue
        low = spec.minimum if spec.minimum is not None else 0.0
        value = max(low, 0.0) if spec.maximum is None or spec.maximum >= 0.0 else spec.maximum
        inputs[spec.name] = np.full(shape, value).astype(NUMPY_OF[spec.dtype])
    return inputs


def _kind(error: Exception, options: Any) -> str:
    """A failure's kind, out of a small fixed set."""
    if options is not None and options.terminate:
        return "timeout"
    if (
        isinstance(error, MemoryError)
        or "bad_alloc" in str(error)
        or "allocate memory" in str(error)
    ):
        return "out_of_memory"
    if isinstance(error, ort_errors.InvalidArgument):
        return "invalid_argument"
    return "runtime"


def _check_stage(
    stage: Stage, session: Any, available: Mapping[str, str], specs: tuple[TensorSpec, ...]
) -> None:
    """The stage's names exist on both sides, data types agree, and the contract's shapes fit."""
    where = f"stage {stage.name!r} ({stage.file})"
    onnx_inputs = {node.name: node for node in session.get_inputs()}
    fed = {onnx_name for _, onnx_name in stage.inputs}
    if fed != set(onnx_inputs):
        raise ModelLoadError(
            f"{where}: the model takes {sorted(onnx_inputs)}, the bundle feeds {sorted(fed)}"
        )
    known = [node.name for node in session.get_outputs()]
    for onnx_name, _ in stage.outputs:
        if onnx_name not in known:
            raise ModelLoadError(f"{where}: the model has no output {onnx_name!r}; it has {known}")
    contract = {spec.name: spec for spec in specs}
    for tensor, onnx_name in stage.inputs:
        node = onnx_inputs[onnx_name]
        if tensor not in available:
            raise ModelLoadError(
                f"{where}: tensor {tensor!r} is no input and no earlier stage makes it"
            )
        wanted = dtype_of_onnx(node.type) or node.type
        if available[tensor] != wanted:
            raise ModelLoadError(
                f"{where}: input {onnx_name!r} takes {wanted}, {tensor!r} is {available[tensor]}"
            )
        if tensor in contract and not _fits(contract[tensor].shape, node.shape):
            raise ModelLoadError(
                f"{where}: input {onnx_name!r} takes shape {node.shape}, which does not allow all of the contract's "
                f"{list(contract[tensor].shape)} (-1 is any size)"
            )


def _fits(contract: tuple[int, ...], onnx_shape: list[Any]) -> bool:
    """Whether the model takes every shape that the contract allows. Named dimensions take any
    size."""
    if not onnx_shape and contract:
        return True  # onnxruntime shows an unknown rank like a scalar: the run decides
    return len(contract) == len(onnx_shape) and all(
        not isinstance(size, int) or size == want
        for want, size in zip(contract, onnx_shape, strict=True)
    )
