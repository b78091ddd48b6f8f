"""A bundle project: ``muster.toml`` as its author wrote it, nothing looked up in the models yet.

Rules kept here: an unknown key is refused with the nearest known one; every file the project names is
relative and stays inside its folder; nothing in the project is ever written.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from agent.bundle import (
    ITEM_BYTES,
    ManifestError,
    Objectives,
    ParameterValue,
    Requirements,
    check_name,
)
from agent.bundle.names import CLASS_PATTERN, MODEL_PATTERN, TENSOR_PATTERN, VERSION_PATTERN
from agent.bundle.observe import MAX_EDGES
from fleet.artifacts.card import Card, read_card
from fleet.artifacts.errors import ProjectError
from fleet.artifacts.table import Table, is_number

__all__ = [
    "PROJECT_FILE",
    "GoldenDraft",
    "ObserveDraft",
    "Project",
    "StageDraft",
    "TensorDraft",
    "read_project",
]

PROJECT_FILE: Final = "muster.toml"
MAX_PROJECT_BYTES: Final = 1024 * 1024
MAX_LABELS_BYTES: Final = 256 * 1024
DEFAULT_ATOL: Final = 1e-4
DEFAULT_RTOL: Final = 1e-3


@dataclass(frozen=True, slots=True)
class StageDraft:
    """``[[stage]]``. Pairs are (the model's own name, tensor of the pipeline). ``outputs`` None: all."""

    name: str
    file: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...] | None


@dataclass(frozen=True, slots=True)
class TensorDraft:
    """``[[input]]`` or ``[[output]]``. ``dtype`` and ``shape`` None: as in the model."""

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None
    minimum: float | None
    maximum: float | None
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GoldenDraft:
    """``[[golden]]``. Pairs are (tensor, file of the project). No ``outputs``: to be recorded."""

    name: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    atol: float
    rtol: float


@dataclass(frozen=True, slots=True)
class ObserveDraft:
    """``[observe]``. ``bins``: edges, or into how many bins of equal share the golden outputs are to be cut."""

    output: str
    bins: tuple[float, ...] | int
    confidence: str
    low_confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project as written. ``folder`` is where its files are."""

    folder: Path
    model: str
    version: str
    device_class: str
    stages: tuple[StageDraft, ...]
    inputs: tuple[TensorDraft, ...]
    outputs: tuple[TensorDraft, ...]
    golden: tuple[GoldenDraft, ...]
    objectives: Objectives
    requirements: Requirements
    parameters: Mapping[str, ParameterValue]
    intra_op_threads: int
    observe: ObserveDraft | None
    card: Card

    def read(self, name: str, max_bytes: int, wanted_by: str) -> bytes:
        """The content of a file of the project.

        Raises:
            ProjectError: it is not there, not readable or too large; says who wants it.
        """
        return _read(self.folder, name, max_bytes, wanted_by)


_TOP: Final = (
    "bundle", "stage", "input", "output", "golden", "objectives", "requires", "parameters", "runtime",
    "observe", "card",
)  # fmt: skip


def read_project(folder: Path) -> Project:
    """Read ``muster.toml`` in ``folder``.

    Raises:
        ProjectError: there is none, or it breaks a rule; the message names the key and what to do.
    """
    top = Table(_load(folder), f"{PROJECT_FILE} ", _TOP)
    bundle = top.table("bundle", ("model", "version", "class"))
    device_class = bundle.text("class", like=CLASS_PATTERN)
    runtime = top.table("runtime", ("intra_op_threads",))
    return Project(
        folder=folder,
        model=bundle.text("model", like=MODEL_PATTERN),
        version=bundle.text("version", like=VERSION_PATTERN),
        device_class=device_class,
        stages=_stages(top),
        inputs=_tensors(folder, top, "input"),
        outputs=_tensors(folder, top, "output"),
        golden=tuple(
            _golden(table)
            for table in top.tables("golden", ("name", "inputs", "outputs", "atol", "rtol"))
        ),
        objectives=_objectives(top),
        requirements=_requirements(top, device_class),
        parameters=_parameters(top),
        intra_op_threads=runtime.integer("intra_op_threads", 1, 0, 256),
        observe=_observe(top) if "observe" in top else None,
        card=read_card(top),
    )


# --- files ----------------------------------------------------------------------------------------


def _load(folder: Path) -> object:
    if not folder.is_dir():
        raise ProjectError(f"{folder} is not a folder; give the folder that holds {PROJECT_FILE}")
    raw = _read(folder, PROJECT_FILE, MAX_PROJECT_BYTES, "a bundle project")
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8
        raise ProjectError(f"{folder / PROJECT_FILE} is not valid TOML: {error}") from error


def _read(folder: Path, name: str, max_bytes: int, wanted_by: str) -> bytes:
    path = folder / name
    try:
        if not path.is_file():
            raise ProjectError(f"{wanted_by} needs the file {path}, which is not there")
        size = path.stat().st_size
        if size > max_bytes:
            raise ProjectError(f"{path} has {size} bytes; {wanted_by} may have {max_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise ProjectError(f"{path} cannot be read: {error.strerror or error}") from error


def _inside(name: str, where: str) -> str:
    """A file name that stays in the project."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ProjectError(f"{where}: {name!r} leaves the project; copy the file into its folder")
    return name


# --- tables ---------------------------------------------------------------------------------------


def _stages(top: Table) -> tuple[StageDraft, ...]:
    tables = top.tables("stage", ("name", "file", "inputs", "outputs"))
    if not tables:
        raise ProjectError(f"{PROJECT_FILE} has no [[stage]]; add one for each ONNX model to run")
    return tuple(_stage(table) for table in tables)


def _stage(table: Table) -> StageDraft:
    name = table.text("name", like=TENSOR_PATTERN)
    file = table.text("file")
    try:
        check_name(file)
    except ManifestError as error:
        raise ProjectError(f"{table.where}: {error}") from error
    return StageDraft(
        name=name,
        file=file,
        inputs=table.pairs("inputs"),
        outputs=table.pairs("outputs") if "outputs" in table else None,
    )


def _tensors(folder: Path, top: Table, key: str) -> tuple[TensorDraft, ...]:
    tables = top.tables(key, ("name", "dtype", "shape", "range", "labels"))
    if not tables:
        raise ProjectError(
            f"{PROJECT_FILE} has no [[{key}]]; add one for each tensor that clients "
            f"{'send' if key == 'input' else 'get'}"
        )
    return tuple(_tensor(folder, table) for table in tables)


def _tensor(folder: Path, table: Table) -> TensorDraft:
    dtype = table.text("dtype", "")
    if "dtype" in table and dtype not in ITEM_BYTES:
        raise table.refuse("dtype", f"one of {', '.join(ITEM_BYTES)}")
    minimum, maximum = table.span("range")
    return TensorDraft(
        name=table.text("name", like=TENSOR_PATTERN),
        dtype=dtype or None,
        shape=table.shape("shape"),
        minimum=minimum,
        maximum=maximum,
        labels=_labels(folder, table),
    )


def _labels(folder: Path, table: Table) -> tuple[str, ...]:
    """A list, or the name of a file with one label a line."""
    if not isinstance(table.get("labels"), str):
        labels = table.texts("labels")
    else:
        name = _inside(table.text("labels"), f"{table.where} labels")
        raw = _read(folder, name, MAX_LABELS_BYTES, f"{table.where} labels")
        try:
            labels = tuple(raw.decode().replace("\r\n", "\n").removesuffix("\n").split("\n"))
        except UnicodeDecodeError as error:
            raise ProjectError(
                f"{table.where} labels: {folder / name} is not UTF-8 text"
            ) from error
    seen: set[str] = set()
    for label in labels:
        if not label or label in seen:
            raise ProjectError(f"{table.where} labels: {label!r} is empty or comes twice")
        seen.add(label)
    return labels


def _golden(table: Table) -> GoldenDraft:
    name = table.text("name")
    try:
        check_name(name, "name")
    except ManifestError as error:
        raise ProjectError(f"{table.where}: {error}") from error
    if "/" in name:
        raise table.refuse("name", "a name without '/'")
    inputs, outputs = table.pairs("inputs"), table.pairs("outputs")
    if not inputs:
        raise table.refuse("inputs", 'a table of files such as { image = "golden/one.npy" }')
    for tensor, file in (*inputs, *outputs):
        _inside(file, f"{table.where} {tensor}")
        if not file.endswith((".npy", ".bin")):
            raise ProjectError(
                f"{table.where} {tensor} = {file!r} must be a .npy file (numpy.save) or a .bin file "
                f"(raw little-endian bytes)"
            )
    return GoldenDraft(
        name,
        inputs,
        outputs,
        table.number("atol", DEFAULT_ATOL),
        table.number("rtol", DEFAULT_RTOL),
    )


def _objectives(top: Table) -> Objectives:
    usual = Objectives()
    table = top.table("objectives", tuple(field.name for field in fields(Objectives)))
    return Objectives(
        latency_ms=table.number("latency_ms", usual.latency_ms, 0.001, 3_600_000),
        max_error_rate=table.number("max_error_rate", usual.max_error_rate, 0, 1),
        max_over_latency_rate=table.number(
            "max_over_latency_rate", usual.max_over_latency_rate, 0, 1
        ),
        max_output_violation_rate=table.number(
            "max_output_violation_rate", usual.max_output_violation_rate, 0, 1
        ),
        probation_s=table.number("probation_s", usual.probation_s, 0, 366 * 86400),
        probation_min_requests=table.integer(
            "probation_min_requests", usual.probation_min_requests
        ),
    )


def _observe(top: Table) -> ObserveDraft:
    table = top.table("observe", ("output", "bins", "confidence", "low_confidence"))
    confidence = table.text("confidence", "")
    if bool(confidence) != ("low_confidence" in table):
        raise ProjectError(
            f"{table.where} needs confidence and low_confidence together: the output that says how sure the "
            f"model is, and below which value it is not"
        )
    bins = table.get("bins")
    if isinstance(bins, int):
        bins = table.integer("bins", 0, 2, MAX_EDGES + 1)
    elif bins is not None and (
        not isinstance(bins, list) or not bins or not all(is_number(edge) for edge in bins)
    ):
        raise table.refuse(
            "bins", "a list of rising edges, or into how many bins the golden outputs are cut"
        )
    return ObserveDraft(
        output=table.text("output", ""),
        bins=bins if isinstance(bins, int) else tuple(float(edge) for edge in bins or ()),
        confidence=confidence,
        low_confidence=table.number("low_confidence", 0.0, -math.inf),
    )


def _requirements(top: Table, device_class: str) -> Requirements:
    table = top.table("requires", tuple(field.name for field in fields(Requirements)))
    for key in ("onnxruntime", "agent"):
        try:
            SpecifierSet(table.text(key, ""))
        except InvalidSpecifier as error:
            raise table.refuse(key, "a version specifier such as '>=1.20'") from error
    classes = table.texts("classes", (device_class,))
    if classes and device_class not in classes:
        raise table.refuse("classes", f"a list that has the bundle's own class {device_class!r}")
    return Requirements(
        classes=classes,
        hardware=table.texts("hardware"),
        memory_bytes=table.integer("memory_bytes", 0),
        onnxruntime=table.text("onnxruntime", ""),
        agent=table.text("agent", ""),
    )


def _parameters(top: Table) -> dict[str, ParameterValue]:
    table = top.table("parameters", None)
    found: dict[str, ParameterValue] = {}
    for key, value in table.items():
        if not isinstance(value, str | int | float) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise table.refuse(key, "text, a number or true/false")
        found[key] = value
    return found
