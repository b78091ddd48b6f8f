"""The manifest: what a bundle consists of and what may be expected of it. Values only.

Rules kept here:

- A manifest is immutable, and identified by the sha256 of its *bytes* (``manifest_sha256``).
- ``to_bytes`` is canonical: sorted keys, no spaces, UTF-8, one newline at the end, no NaN.
- Stages run in order over one flat namespace of tensors: the contract's inputs, then each stage's
  outputs.
- Golden tensors are raw little-endian bytes with dtype and shape here; each ``BYTES`` element
  follows its little-endian uint32 length, as in the Open Inference Protocol. No pickle.

``agent.bundle.parse`` makes these from untrusted bytes; building one by hand checks nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

from agent.bundle.errors import ManifestError

__all__ = [
    "FORMAT",
    "ITEM_BYTES",
    "MAX_MANIFEST_BYTES",
    "PIECE_BYTES",
    "BundleFile",
    "GoldenCase",
    "GoldenOutput",
    "GoldenTensor",
    "Manifest",
    "Objectives",
    "Observe",
    "ParameterValue",
    "Piece",
    "Requirements",
    "Stage",
    "TensorSpec",
    "manifest_sha256",
]

FORMAT: Final = 1
MAX_MANIFEST_BYTES: Final = 512 * 1024
PIECE_BYTES: Final = 256 * 1024

# Open Inference Protocol data types and their size; BYTES is variable (0).
ITEM_BYTES: Final[Mapping[str, int]] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8,
    "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
}  # fmt: skip

ParameterValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes, at most ``PIECE_BYTES``, that travels and is stored under its digest."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class BundleFile:
    """A file: its pieces in order make up exactly ``size`` bytes with digest ``sha256``."""

    name: str
    size: int
    sha256: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of the contract; a -1 in ``shape`` is free.

    ``dtype`` is a key of ITEM_BYTES; ``minimum`` and ``maximum`` bound each element (None: not);
    ``labels`` name the classes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float | None = None
    maximum: float | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One ONNX model of the pipeline.

    ``inputs``: (pipeline tensor, ONNX input); ``outputs``: (ONNX output, pipeline tensor).
    """

    name: str
    file: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class GoldenTensor:
    """Raw little-endian bytes in a file of the bundle."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GoldenOutput:
    """What must come out: ``|got - expected| <= atol + rtol * |expected|`` for each element."""

    name: str
    tensor: GoldenTensor
    atol: float
    rtol: float


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """Inputs whose outputs are known; run on every device before a swap."""

    name: str
    inputs: tuple[tuple[str, GoldenTensor], ...]
    outputs: tuple[GoldenOutput, ...]


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a device holds the bundle to. Rates are 0..1 of requests in probation."""

    latency_ms: float = 1000.0
    max_error_rate: float = 0.01
    max_over_latency_rate: float = 0.05
    max_output_violation_rate: float = 0.01
    probation_s: float = 60.0
    probation_min_requests: int = 0


@dataclass(frozen=True, slots=True)
class Observe:
    """What is counted of the answers, beside requests and errors; see ``agent.bundle.observe``.

    ``output``: the one whose values are counted by name ("": none), a number's by the ``bins`` between these rising
    edges. ``confidence``: the one whose highest score a row says how sure the model is ("": none), which is low below
    ``low_confidence``.
    """

    output: str = ""
    bins: tuple[float, ...] = ()
    confidence: str = ""
    low_confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class Requirements:
    """Which devices may run it. Empty means any; ``memory_bytes`` 0 means not stated.

    ``onnxruntime`` and ``agent`` are PEP 440 specifiers (``>=1.20``).
    """

    classes: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    memory_bytes: int = 0
    onnxruntime: str = ""
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a device must know about a bundle before it fetches a byte of it."""

    model: str
    version: str
    device_class: str
    created_s: int
    files: tuple[BundleFile, ...]
    stages: tuple[Stage, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: tuple[GoldenCase, ...] = ()
    objectives: Objectives = Objectives()
    requirements: Requirements = Requirements()
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    intra_op_threads: int = 1
    observe: Observe | None = None
    format: int = FORMAT

    @property
    def path(self) -> str:
        """The bundle's name in the repository: ``bundles/CLASS/MODEL-VERSION``."""
        return f"bundles/{self.device_class}/{self.model}-{self.version}"

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, without the manifest."""
        return sum(file.size for file in self.files)

    def file(self, name: str) -> BundleFile:
        """The file called ``name``.

        Raises:
            ManifestError: there is none.
        """
        for file in self.files:
            if file.name == name:
                return file
        raise ManifestError(
            f"bundle {self.path} has no file {name!r}; "
            f"it has {', '.join(file.name for file in self.files)[:300]}"
        )

    def pieces(self) -> tuple[Piece, ...]:
        """Every piece once, in the order of its first use."""
        return tuple({piece.sha256: piece for file in self.files for piece in file.pieces}.values())

    def to_bytes(self) -> bytes:
        """Canonical JSON. ``parse_manifest(m.to_bytes()) == m`` for every valid ``m``.

        ``observe`` is left out when there is none, so that agents from before it read the manifest.
        """
        values = asdict(self)
        if self.observe is None:
            del values["observe"]
        text = json.dumps(
            values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode() + b"\n"


def manifest_sha256(raw: bytes) -> str:
    """The identity of a bundle: lower-case hex sha256 of the bytes of ``manifest.json``."""
    return hashlib.sha256(raw).hexdigest()
