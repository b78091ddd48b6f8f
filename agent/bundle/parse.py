"""From untrusted bytes to a Manifest, or a ManifestError that names the field.

Rules kept here: unknown keys are refused; every list, text and number is bounded by
``ManifestLimits``; pieces add up to their file. How the parts fit each other: ``agent.bundle.fit``.
"""

import math
from dataclasses import dataclass

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from agent.bundle.errors import ManifestError
from agent.bundle.fields import (
    SHA256_PATTERN,
    Fields,
    as_integer,
    as_number,
    as_pair,
    as_text,
    is_text,
    load_json,
    refuse_repeats,
    shown,
)
from agent.bundle.fit import check_manifest
from agent.bundle.manifest import (
    FORMAT,
    ITEM_BYTES,
    MAX_MANIFEST_BYTES,
    PIECE_BYTES,
    BundleFile,
    GoldenCase,
    GoldenOutput,
    GoldenTensor,
    Manifest,
    Objectives,
    Observe,
    ParameterValue,
    Piece,
    Requirements,
    Stage,
    TensorSpec,
)
from agent.bundle.names import (
    CLASS_PATTERN,
    MODEL_PATTERN,
    TENSOR_PATTERN,
    VERSION_PATTERN,
)
from agent.bundle.observe import MAX_EDGES

__all__ = ["ManifestLimits", "parse_manifest"]


@dataclass(frozen=True, slots=True)
class ManifestLimits:
    """How much a manifest may ask of a device."""

    max_manifest_bytes: int = MAX_MANIFEST_BYTES
    max_file_bytes: int = 2 * 1024**3  # an ONNX file is one protobuf message, which ends at 2 GiB
    max_files: int = 1024
    max_pieces_per_file: int = 8192
    max_stages: int = 32
    max_tensors: int = 64
    max_rank: int = 16
    max_dimension: int = 2**31 - 1
    max_labels: int = 20_000
    max_golden_cases: int = 256
    max_parameters: int = 256
    max_text_chars: int = 4096
    max_threads: int = 256
    max_seconds: int = 366 * 86400


def parse_manifest(raw: bytes, limits: ManifestLimits | None = None) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        ManifestError: the message says which field, what it holds and what is allowed.
    """
    limits = limits or ManifestLimits()
    top = Fields(load_json(raw, "manifest.json", limits.max_manifest_bytes), "manifest.json")
    found = top.take("format")
    if isinstance(found, bool) or found != FORMAT:
        raise ManifestError(
            f"manifest.json has format {shown(found)}; this agent reads format {FORMAT}"
        )
    files = tuple(
        _file(item, where, limits)
        for item, where in top.items("files", limits.max_files, min_items=1)
    )
    manifest = Manifest(
        model=top.text("model", MODEL_PATTERN),
        version=top.text("version", VERSION_PATTERN),
        device_class=top.text("device_class", CLASS_PATTERN),
        created_s=top.integer("created_s", 0, 2**53),
        files=files,
        stages=tuple(
            _stage(item, w, limits)
            for item, w in top.items("stages", limits.max_stages, min_items=1)
        ),
        inputs=tuple(
            _tensor(item, w, limits)
            for item, w in top.items("inputs", limits.max_tensors, min_items=1)
        ),
        outputs=tuple(
            _tensor(item, w, limits)
            for item, w in top.items("outputs", limits.max_tensors, min_items=1)
        ),
        golden=tuple(
            _golden_case(item, w, limits)
            for item, w in top.items("golden", limits.max_golden_cases)
        ),
        objectives=_objectives(Fields(top.take("objectives"), "objectives"), limits),
        requirements=_requirements(Fields(top.take("requirements"), "requirements")),
        parameters=_parameters(top.take("parameters"), limits),
        intra_op_threads=top.integer("intra_op_threads", 0, limits.max_threads),
        observe=_observe(top.optional("observe")),
    )
    top.done()
    check_manifest(manifest)
    return manifest


# --- parts ----------------------------------------------------------------------------------------


def _file(value: object, where: str, limits: ManifestLimits) -> BundleFile:
    fields = Fields(value, where)
    name = fields.text("name")
    size = fields.integer("size", 0, limits.max_file_bytes)
    sha256 = fields.text("sha256", SHA256_PATTERN)
    pieces = []
    for item, place in fields.items("pieces", limits.max_pieces_per_file):
        piece = Fields(item, place)
        pieces.append(
            Piece(piece.text("sha256", SHA256_PATTERN), piece.integer("size", 1, PIECE_BYTES))
        )
        piece.done()
    fields.done()
    if sum(piece.size for piece in pieces) != size:
        raise ManifestError(
            f"{where} ({shown(name)}) says {size} bytes, "
            f"but its pieces add up to {sum(piece.size for piece in pieces)}"
        )
    return BundleFile(name, size, sha256, tuple(pieces))


def _pairs(fields: Fields, key: str, limits: ManifestLimits) -> tuple[tuple[str, str], ...]:
    found = []
    for item, where in fields.items(key, limits.max_tensors):
        left, right = as_pair(item, where)
        found.append((as_text(left, where, TENSOR_PATTERN), as_text(right, where, TENSOR_PATTERN)))
    return tuple(found)


def _stage(value: object, where: str, limits: ManifestLimits) -> Stage:
    fields = Fields(value, where)
    stage = Stage(
        name=fields.text("name", TENSOR_PATTERN),
        file=fields.text("file"),
        inputs=_pairs(fields, "inputs", limits),
        outputs=_pairs(fields, "outputs", limits),
    )
    fields.done()
    if not stage.outputs:
        raise ManifestError(f"{where}.outputs is empty: a stage that produces nothing has no use")
    refuse_repeats((onnx for _, onnx in stage.inputs), f"{where}.inputs")
    return stage


def _dtype(fields: Fields) -> str:
    dtype = fields.text("dtype")
    if dtype not in ITEM_BYTES:
        raise ManifestError(
            f"{fields.at('dtype')} = {dtype!r} is not one of {', '.join(ITEM_BYTES)}"
        )
    return dtype


def _shape(fields: Fields, minimum: int, limits: ManifestLimits) -> tuple[int, ...]:
    return tuple(
        as_integer(item, where, minimum, limits.max_dimension)
        for item, where in fields.items("shape", limits.max_rank)
    )


def _tensor(value: object, where: str, limits: ManifestLimits) -> TensorSpec:
    fields = Fields(value, where)
    spec = TensorSpec(
        name=fields.text("name", TENSOR_PATTERN),
        dtype=_dtype(fields),
        shape=_shape(fields, -1, limits),
        minimum=fields.optional_number("minimum"),
        maximum=fields.optional_number("maximum"),
        labels=fields.texts("labels", limits.max_labels),
    )
    fields.done()
    if spec.minimum is not None and spec.maximum is not None and spec.minimum > spec.maximum:
        raise ManifestError(
            f"{where} ({spec.name}) has minimum {spec.minimum} above maximum {spec.maximum}"
        )
    if spec.dtype in {"BYTES", "BOOL"} and (spec.minimum is not None or spec.maximum is not None):
        raise ManifestError(
            f"{where} ({spec.name}) is {spec.dtype}, which has no minimum or maximum"
        )
    return spec


def _golden_tensor(value: object, where: str, limits: ManifestLimits) -> GoldenTensor:
    fields = Fields(value, where)
    tensor = GoldenTensor(fields.text("file"), _dtype(fields), _shape(fields, 0, limits))
    fields.done()
    return tensor


def _golden_case(value: object, where: str, limits: ManifestLimits) -> GoldenCase:
    fields = Fields(value, where)
    name = fields.text("name", TENSOR_PATTERN)
    inputs = []
    for item, place in fields.items("inputs", limits.max_tensors, min_items=1):
        tensor_name, tensor = as_pair(item, place)
        checked = as_text(tensor_name, place, TENSOR_PATTERN)
        inputs.append((checked, _golden_tensor(tensor, place, limits)))
    outputs = []
    for item, place in fields.items("outputs", limits.max_tensors, min_items=1):
        output = Fields(item, place)
        outputs.append(
            GoldenOutput(
                name=output.text("name", TENSOR_PATTERN),
                tensor=_golden_tensor(output.take("tensor"), output.at("tensor"), limits),
                atol=output.number("atol", 0),
                rtol=output.number("rtol", 0),
            )
        )
        output.done()
    fields.done()
    return GoldenCase(name, tuple(inputs), tuple(outputs))


def _objectives(fields: Fields, limits: ManifestLimits) -> Objectives:
    objectives = Objectives(
        latency_ms=fields.number("latency_ms", 0.001, 3_600_000),
        max_error_rate=fields.number("max_error_rate", 0, 1),
        max_over_latency_rate=fields.number("max_over_latency_rate", 0, 1),
        max_output_violation_rate=fields.number("max_output_violation_rate", 0, 1),
        probation_s=fields.number("probation_s", 0, limits.max_seconds),
        probation_min_requests=fields.integer("probation_min_requests", 0, 2**53),
    )
    fields.done()
    return objectives


def _observe(value: object) -> Observe | None:
    if value is None:
        return None
    fields = Fields(value, "observe")
    observe = Observe(
        output=fields.text("output"),
        bins=tuple(as_number(item, where) for item, where in fields.items("bins", MAX_EDGES)),
        confidence=fields.text("confidence"),
        low_confidence=fields.number("low_confidence"),
    )
    fields.done()
    return observe


def _specifier(fields: Fields, key: str) -> str:
    text = fields.text(key)
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ManifestError(
            f"{fields.at(key)} = {text!r} is not a version specifier such as '>=1.20'"
        ) from error
    return text


def _requirements(fields: Fields) -> Requirements:
    requirements = Requirements(
        classes=fields.texts("classes", 64, CLASS_PATTERN),
        hardware=fields.texts("hardware", 64, TENSOR_PATTERN),
        memory_bytes=fields.integer("memory_bytes", 0, 2**53),
        onnxruntime=_specifier(fields, "onnxruntime"),
        agent=_specifier(fields, "agent"),
    )
    fields.done()
    return requirements


def _parameters(value: object, limits: ManifestLimits) -> dict[str, ParameterValue]:
    if not isinstance(value, dict) or len(value) > limits.max_parameters:
        raise ManifestError(
            f"parameters must be an object of at most {limits.max_parameters} keys, "
            f"not {shown(value)}"
        )
    found: dict[str, ParameterValue] = {}
    for key, item in value.items():
        if not TENSOR_PATTERN.fullmatch(key):
            raise ManifestError(
                f"parameters has the key {shown(key)}, which is not printable ASCII without spaces"
            )
        if not isinstance(item, str | int | float) or (
            isinstance(item, float) and not math.isfinite(item)
        ):
            raise ManifestError(
                f"parameters.{key} must be text, a number or true/false, not {shown(item)}"
            )
        if isinstance(item, str) and not is_text(item, limits.max_text_chars):
            raise ManifestError(
                f"parameters.{key} is not text of at most {limits.max_text_chars} characters"
            )
        found[key] = item
    return found
