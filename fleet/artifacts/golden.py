"""Golden cases of a project: arrays from its files, held against the contract.

Rules kept here: nothing is unpickled; an array has the data type of the contract and is not converted
in silence; what a case says must itself keep the contract. In the bundle every tensor is a raw
little-endian file ``golden/CASE/in-N.bin`` or ``out-N.bin``.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from agent.bundle import ITEM_BYTES, GoldenCase, GoldenOutput, GoldenTensor, TensorSpec
from agent.runtime.contract import finding
from agent.runtime.dtypes import Array, dtype_of, from_raw, to_raw
from agent.runtime.errors import InputContractError
from fleet.artifacts.contract import Contract
from fleet.artifacts.errors import BuildRefusedError, ProjectError
from fleet.artifacts.project import PROJECT_FILE, GoldenDraft, Project

__all__ = ["Golden", "add_recorded", "load_golden"]

MAX_GOLDEN_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Golden:
    """A case on its way into the bundle. ``files``: name in the bundle -> bytes. ``outputs`` empty: not known yet."""

    draft: GoldenDraft
    inputs: tuple[tuple[str, GoldenTensor], ...]
    outputs: tuple[GoldenOutput, ...]
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def case(self) -> GoldenCase:
        return GoldenCase(self.draft.name, self.inputs, self.outputs)


def load_golden(project: Project, contract: Contract, draft: GoldenDraft) -> Golden:
    """Read a case's files.

    Raises:
        ProjectError: a file is missing or is not what it should be. BuildRefusedError: it does not keep
            the contract.
    """
    where = f"{PROJECT_FILE} [[golden]] {draft.name!r}"
    _match_names(where, "input", dict(draft.inputs), contract.inputs, all_of_them=True)
    _match_names(where, "output", dict(draft.outputs), contract.outputs, all_of_them=False)
    files: dict[str, bytes] = {}
    inputs = []
    for index, (name, file) in enumerate(draft.inputs):
        spec = _spec(contract.inputs, name)
        array = _load(project, f"{where} {name}", file, spec)
        inputs.append((name, _store(files, f"golden/{draft.name}/in-{index}.bin", array, spec)))
    outputs = []
    for index, (name, file) in enumerate(draft.outputs):
        spec = _spec(contract.outputs, name)
        array = _load(project, f"{where} {name}", file, spec)
        tensor = _store(files, f"golden/{draft.name}/out-{index}.bin", array, spec)
        outputs.append(GoldenOutput(name, tensor, draft.atol, draft.rtol))
    return Golden(draft, tuple(inputs), tuple(outputs), files)


def add_recorded(golden: Golden, contract: Contract, recorded: Mapping[str, Array]) -> Golden:
    """The case with what the pipeline itself answered as what is expected.

    Raises:
        BuildRefusedError: the answer is not finite or does not keep the contract.
    """
    files = dict(golden.files)
    outputs = []
    for index, spec in enumerate(contract.outputs):
        array = recorded[spec.name]
        where = f"recording golden case {golden.draft.name!r}: output {spec.name!r}"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BuildRefusedError(
                f"{where} holds NaN or infinity; a case must have answers that can be compared"
            )
        if problem := finding(spec, array):
            raise BuildRefusedError(f"{where} does not keep the contract: {problem}")
        tensor = _store(files, f"golden/{golden.draft.name}/out-{index}.bin", array, spec)
        outputs.append(GoldenOutput(spec.name, tensor, golden.draft.atol, golden.draft.rtol))
    return Golden(golden.draft, golden.inputs, tuple(outputs), files)


def _match_names(
    where: str,
    kind: str,
    given: Mapping[str, str],
    specs: tuple[TensorSpec, ...],
    *,
    all_of_them: bool,
) -> None:
    names = [spec.name for spec in specs]
    for name in given:
        if name not in names:
            raise ProjectError(
                f"{where} {kind}s: {name!r} is no {kind}; there are {', '.join(names)}"
            )
    missing = [name for name in names if name not in given]
    if all_of_them and missing:
        raise ProjectError(f"{where} gives no {', '.join(missing)}; a case needs every {kind}")


def _spec(specs: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    return next(spec for spec in specs if spec.name == name)


def _store(files: dict[str, bytes], name: str, array: Array, spec: TensorSpec) -> GoldenTensor:
    files[name] = to_raw(array)
    return GoldenTensor(name, spec.dtype, tuple(int(size) for size in array.shape))


def _load(project: Project, where: str, file: str, spec: TensorSpec) -> Array:
    raw = project.read(file, MAX_GOLDEN_BYTES, where)
    array = _npy(where, file, raw) if file.endswith(".npy") else _bin(where, file, raw, spec)
    if dtype_of(array) != spec.dtype:
        raise BuildRefusedError(
            f"{where}: {file} is {dtype_of(array)}, the contract says {spec.dtype}; save it with that type"
        )
    if problem := finding(spec, array):
        raise BuildRefusedError(f"{where}: {file} does not keep the contract: {problem}")
    return array


def _npy(where: str, file: str, raw: bytes) -> Array:
    try:
        array: Array = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise ProjectError(
            f"{where}: {file} is not a .npy file of plain numbers or text ({error}); save it with numpy.save"
        ) from error
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8").astype(object)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _bin(where: str, file: str, raw: bytes, spec: TensorSpec) -> Array:
    """Raw bytes: the contract says what they are; one free dimension follows from their number."""
    shape = list(spec.shape)
    item_bytes = ITEM_BYTES[spec.dtype]
    if shape.count(-1) > 1 or (-1 in shape and not item_bytes):
        raise ProjectError(
            f"{where}: the shape {shape} does not follow from the bytes of {file}; save it as .npy"
        )
    if -1 in shape:
        row_bytes = item_bytes * int(np.prod([size for size in shape if size != -1]))
        shape[shape.index(-1)] = len(raw) // row_bytes if row_bytes else 0
    try:
        return from_raw(raw, spec.dtype, shape, file)
    except InputContractError as error:
        raise ProjectError(f"{where}: {error}") from error
