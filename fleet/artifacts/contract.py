"""From what a project says and what its models take and make to stages and a contract. Values only.

Rules kept here: each model input is fed by exactly one tensor that exists by then; data types agree;
ranks and fixed sizes agree; the contract allows no input that a model would refuse; each input is
used and each output made. Every message names the place in ``muster.toml`` and what would fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.bundle import Stage, TensorSpec
from fleet.artifacts.errors import BuildRefusedError
from fleet.artifacts.onnx_model import OnnxModel, OnnxTensor
from fleet.artifacts.project import PROJECT_FILE, Project, StageDraft, TensorDraft

__all__ = ["Contract", "fit_contract"]


@dataclass(frozen=True, slots=True)
class Contract:
    """The wired pipeline and what clients see of it."""

    stages: tuple[Stage, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """A tensor of the pipeline; dtype and shape None as long as nothing says them."""

    dtype: str | None
    shape: tuple[int, ...] | None
    made_by: str


def fit_contract(project: Project, models: Mapping[str, OnnxModel]) -> Contract:
    """Wire the stages and check the contract. ``models``: by file name.

    Raises:
        BuildRefusedError: something does not fit.
    """
    tensors = {
        draft.name: _Known(draft.dtype, draft.shape, f"[[input]] {draft.name!r}")
        for draft in project.inputs
    }
    made: dict[str, _Known] = {}
    unread = {draft.name for draft in project.inputs}
    stages = []
    for draft in project.stages:
        model = models[draft.file]
        inputs = _feed(draft, model, tensors)
        unread -= {tensor for tensor, _ in inputs}
        outputs = _harvest(draft, model, tensors, made)
        stages.append(Stage(draft.name, draft.file, inputs, outputs))
    for name in sorted(unread):
        raise BuildRefusedError(
            f"{PROJECT_FILE} [[input]] {name!r} is read by no stage; remove it or name it in a stage's inputs"
        )
    return Contract(
        stages=tuple(stages),
        inputs=tuple(_spec(draft, tensors[draft.name], "input") for draft in project.inputs),
        outputs=tuple(_output(draft, made) for draft in project.outputs),
    )


def _feed(
    draft: StageDraft, model: OnnxModel, tensors: dict[str, _Known]
) -> tuple[tuple[str, str], ...]:
    where = f"{PROJECT_FILE} [[stage]] {draft.name!r}"
    renamed = dict(draft.inputs)
    for onnx_name in renamed:
        if model.input(onnx_name) is None:
            names = ", ".join(tensor.name for tensor in model.inputs)
            raise BuildRefusedError(
                f"{where} inputs: {draft.file} has no input {onnx_name!r}; it has {names}"
            )
    pairs = []
    for taken in model.inputs:
        tensor = renamed.get(taken.name, taken.name)
        if not taken.usable:
            raise BuildRefusedError(
                f"{where}: input {taken.name!r} of {draft.file} is a {taken.dtype}, which no client can send"
            )
        known = tensors.get(tensor)
        if known is None:
            raise BuildRefusedError(
                f"{where}: {draft.file} takes {taken.name!r}, but there is no tensor {tensor!r} by "
                f"then (there are {', '.join(sorted(tensors))}); say which one it gets: "
                f'inputs = {{ {taken.name} = "..." }}'
            )
        tensors[tensor] = _narrowed(where, draft.file, tensor, known, taken)
        pairs.append((tensor, taken.name))
    return tuple(pairs)


def _narrowed(where: str, file: str, tensor: str, known: _Known, taken: OnnxTensor) -> _Known:
    """What is known of a tensor after a model took it."""
    takes = f"{where}: {file} takes {taken.name!r} as {_shown(taken.dtype, taken.shape)}"
    if known.dtype is not None and known.dtype != taken.dtype:
        raise BuildRefusedError(
            f"{takes}, but {known.made_by} is {known.dtype}; make them the same data type"
        )
    if taken.shape is None:
        return _Known(taken.dtype, known.shape, known.made_by)
    if known.shape is None:
        return _Known(taken.dtype, taken.shape, known.made_by)
    is_input = known.made_by.startswith("[[input]]")
    fits = len(known.shape) == len(taken.shape) and all(
        want in (-1, have) or (have == -1 and not is_input)
        for have, want in zip(known.shape, taken.shape, strict=True)
    )
    if not fits:
        raise BuildRefusedError(
            f"{takes}, but {known.made_by} has the shape {list(known.shape)} (-1 is any size); "
            f"change the shape of {tensor!r} or the model"
        )
    return _Known(taken.dtype, known.shape, known.made_by)


def _harvest(
    draft: StageDraft, model: OnnxModel, tensors: dict[str, _Known], made: dict[str, _Known]
) -> tuple[tuple[str, str], ...]:
    where = f"{PROJECT_FILE} [[stage]] {draft.name!r}"
    wanted = draft.outputs
    if wanted is None:
        wanted = tuple((tensor.name, tensor.name) for tensor in model.outputs if tensor.usable)
    for onnx_name, tensor in wanted:
        found = model.output(onnx_name)
        if found is None:
            names = ", ".join(output.name for output in model.outputs)
            raise BuildRefusedError(
                f"{where} outputs: {draft.file} has no output {onnx_name!r}; it has {names}"
            )
        if not found.usable:
            raise BuildRefusedError(
                f"{where}: output {onnx_name!r} of {draft.file} is a {found.dtype} and no tensor; "
                f"export the model without it (scikit-learn: zipmap=False)"
            )
        if tensor in tensors:
            raise BuildRefusedError(
                f"{where} makes {tensor!r}, but {tensors[tensor].made_by} is called so already; give "
                f'it another name: outputs = {{ {onnx_name} = "..." }}'
            )
        tensors[tensor] = _Known(found.dtype, found.shape, f"{tensor!r} of stage {draft.name!r}")
        made[tensor] = tensors[tensor]
    if not wanted:
        raise BuildRefusedError(f"{where}: {draft.file} makes no tensor; check how it was exported")
    return wanted


def _output(draft: TensorDraft, made: Mapping[str, _Known]) -> TensorSpec:
    where = f"{PROJECT_FILE} [[output]] {draft.name!r}"
    known = made.get(draft.name)
    if known is None:
        raise BuildRefusedError(
            f"{where} is made by no stage; the stages make {', '.join(sorted(made))}"
        )
    if draft.dtype is not None and draft.dtype != known.dtype:
        raise BuildRefusedError(
            f"{where} is {draft.dtype} in the contract, but the model makes {known.dtype}"
        )
    if draft.shape is not None and known.shape is not None:
        fits = len(draft.shape) == len(known.shape) and all(
            -1 in (want, have) or want == have
            for want, have in zip(draft.shape, known.shape, strict=True)
        )
        if not fits:
            raise BuildRefusedError(
                f"{where} has the shape {list(draft.shape)} in the contract, but the model makes "
                f"{list(known.shape)} (-1 is any size)"
            )
    return _spec(draft, known, "output")


def _spec(draft: TensorDraft, known: _Known, kind: str) -> TensorSpec:
    where = f"{PROJECT_FILE} [[{kind}]] {draft.name!r}"
    dtype = draft.dtype or known.dtype
    shape = draft.shape if draft.shape is not None else known.shape
    if dtype is None or shape is None:
        raise BuildRefusedError(f"{where}: the model does not say its rank; add shape = [...]")
    if dtype in {"BYTES", "BOOL"} and (draft.minimum, draft.maximum) != (None, None):
        raise BuildRefusedError(f"{where} is {dtype}, which has no range; remove it")
    count = len(draft.labels)
    if count and dtype.startswith("FP") and shape and shape[-1] not in (-1, count):
        raise BuildRefusedError(
            f"{where} has {count} labels for {shape[-1]} scores; give one label a score"
        )
    return TensorSpec(draft.name, dtype, shape, draft.minimum, draft.maximum, draft.labels)


def _shown(dtype: str, shape: tuple[int, ...] | None) -> str:
    return f"{dtype} of any rank" if shape is None else f"{dtype}{list(shape)}"
