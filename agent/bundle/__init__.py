"""The bundle format: what a device must understand before it trusts, fetches or runs anything.

No network, no numpy, no onnxruntime here. ``agent.bundle.folder`` reads and verifies bundles on
disk.
"""

from agent.bundle.errors import BundleFileError, ManifestError
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
    manifest_sha256,
)
from agent.bundle.names import MANIFEST_NAME, check_name, check_names
from agent.bundle.parse import ManifestLimits, parse_manifest

__all__ = [
    "FORMAT",
    "ITEM_BYTES",
    "MANIFEST_NAME",
    "MAX_MANIFEST_BYTES",
    "PIECE_BYTES",
    "BundleFile",
    "BundleFileError",
    "GoldenCase",
    "GoldenOutput",
    "GoldenTensor",
    "Manifest",
    "ManifestError",
    "ManifestLimits",
    "Objectives",
    "Observe",
    "ParameterValue",
    "Piece",
    "Requirements",
    "Stage",
    "TensorSpec",
    "check_manifest",
    "check_name",
    "check_names",
    "manifest_sha256",
    "parse_manifest",
]
