"""How the parts of a manifest fit: each refers only to what exists.

Rules kept here: names pass ``agent.bundle.names``; a file is of a kind that somebody reads (stages are ``.onnx``,
golden tensors ``.bin``, what lies beside them raw bytes, text or signatures), nothing that is run or unpacked; one
digest has one size; a stage reads only what is there before it and writes only new names; each contract output is
produced by a stage; each golden case gives every input, and its files have the bytes its dtype and shape need; what is
observed is an output that can be. Whether the contract fits the models is checked where models can be read (fleet
build, trial).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

from agent.bundle.errors import ManifestError
from agent.bundle.fields import refuse_repeats
from agent.bundle.manifest import ITEM_BYTES, GoldenTensor, Manifest, TensorSpec
from agent.bundle.names import check_names
from agent.bundle.observe import check_observe

__all__ = ["check_manifest"]

STAGE_ENDING: Final = ".onnx"
GOLDEN_ENDING: Final = ".bin"
PAPER_ENDINGS: Final = (GOLDEN_ENDING, ".json", ".jsonl", ".md", ".sig", ".txt")


def check_manifest(manifest: Manifest) -> None:
    """Check that the parts of a manifest refer only to what exists.

    Raises:
        ManifestError: they do not.
    """
    check_names(file.name for file in manifest.files)
    _check_piece_sizes(manifest)
    _check_wiring(manifest)
    _check_golden(manifest)
    _check_kinds(manifest)
    check_observe(manifest)
    classes = manifest.requirements.classes
    if classes and manifest.device_class not in classes:
        raise ManifestError(
            f"requirements.classes = {', '.join(classes)} leaves out the bundle's own class "
            f"{manifest.device_class!r}; add it"
        )


def _check_kinds(manifest: Manifest) -> None:
    stages = {stage.file for stage in manifest.stages}
    tensors = {tensor.file for case in manifest.golden for _, tensor in case.inputs}
    tensors |= {output.tensor.file for case in manifest.golden for output in case.outputs}
    for file in manifest.files:
        endings = {
            "a stage's model": (STAGE_ENDING,) if file.name in stages else (),
            "a golden tensor": (GOLDEN_ENDING,) if file.name in tensors else (),
            "no model and no tensor": PAPER_ENDINGS if file.name not in stages | tensors else (),
        }
        for role, allowed in endings.items():
            if allowed and not file.name.endswith(allowed):
                raise ManifestError(
                    f"file {file.name!r} is {role}, so its name must end in {' or '.join(allowed)}; "
                    f"nothing else is read from a bundle: rename it or leave it out"
                )


def _check_piece_sizes(manifest: Manifest) -> None:
    sizes: dict[str, int] = {}
    for file in manifest.files:
        for piece in file.pieces:
            if sizes.setdefault(piece.sha256, piece.size) != piece.size:
                raise ManifestError(
                    f"file {file.name!r} gives piece {piece.sha256[:12]} {piece.size} bytes, "
                    f"elsewhere it has {sizes[piece.sha256]}"
                )


def _check_wiring(manifest: Manifest) -> None:
    files = {file.name for file in manifest.files}
    refuse_repeats((spec.name for spec in manifest.inputs), "inputs")
    refuse_repeats((spec.name for spec in manifest.outputs), "outputs")
    refuse_repeats((stage.name for stage in manifest.stages), "stages")
    tensors = {spec.name for spec in manifest.inputs}
    produced: set[str] = set()
    for stage in manifest.stages:
        if stage.file not in files:
            raise ManifestError(
                f"stage {stage.name!r} runs {stage.file!r}, which is not a file of the bundle"
            )
        for tensor, _ in stage.inputs:
            if tensor not in tensors:
                raise ManifestError(
                    f"stage {stage.name!r} reads {tensor!r}, which is no input and no earlier "
                    f"stage's output (there are: {_listed(tensors)})"
                )
        for _, tensor in stage.outputs:
            if tensor in tensors:
                raise ManifestError(
                    f"stage {stage.name!r} writes {tensor!r}, which exists already; "
                    f"use another name"
                )
            tensors.add(tensor)
            produced.add(tensor)
    for spec in manifest.outputs:
        if spec.name not in produced:
            raise ManifestError(
                f"output {spec.name!r} is produced by no stage "
                f"(the stages produce: {_listed(produced)})"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))[:300]


def _check_golden(manifest: Manifest) -> None:
    refuse_repeats((case.name for case in manifest.golden), "golden")
    inputs = {spec.name: spec for spec in manifest.inputs}
    outputs = {spec.name: spec for spec in manifest.outputs}
    sizes = {file.name: file.size for file in manifest.files}
    for case in manifest.golden:
        place = f"golden case {case.name!r}"
        refuse_repeats((name for name, _ in case.inputs), f"{place} inputs")
        refuse_repeats((output.name for output in case.outputs), f"{place} outputs")
        if {name for name, _ in case.inputs} != set(inputs):
            raise ManifestError(
                f"{place} must give every input ({_listed(inputs)}), "
                f"it gives {_listed(name for name, _ in case.inputs)}"
            )
        for name, tensor in case.inputs:
            _check_golden_tensor(sizes, f"{place}, input {name!r}", tensor, inputs[name])
        for output in case.outputs:
            if output.name not in outputs:
                raise ManifestError(
                    f"{place} expects {output.name!r}, which is no output ({_listed(outputs)})"
                )
            _check_golden_tensor(
                sizes, f"{place}, output {output.name!r}", output.tensor, outputs[output.name]
            )


def _check_golden_tensor(
    sizes: Mapping[str, int], place: str, tensor: GoldenTensor, spec: TensorSpec
) -> None:
    """``sizes``: of the bundle's files."""
    if tensor.file not in sizes:
        raise ManifestError(f"{place} is in {tensor.file!r}, which is not a file of the bundle")
    if tensor.dtype != spec.dtype or not _fits(tensor.shape, spec.shape):
        raise ManifestError(
            f"{place} is {tensor.dtype}{list(tensor.shape)}, "
            f"the contract says {spec.dtype}{list(spec.shape)}"
        )
    size, item_bytes = sizes[tensor.file], ITEM_BYTES[tensor.dtype]
    if item_bytes and math.prod(tensor.shape) * item_bytes != size:
        raise ManifestError(
            f"{place} needs {math.prod(tensor.shape) * item_bytes} bytes for "
            f"{tensor.dtype}{list(tensor.shape)}, file {tensor.file!r} has {size}"
        )


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want in (-1, have) for have, want in zip(shape, wanted, strict=True)
    )
