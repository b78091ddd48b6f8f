"""``bom.cdx.json``: the bill of materials of a bundle, a CycloneDX 1.6 ML-BOM.

Rules kept here: the same bundle makes the same bytes: no random serial number, no clock; what nobody said is left
out, never guessed.

Written here because the CycloneDX library for Python knows no model cards; the tests hold it against that library's
copy of the schema (https://cyclonedx.org/docs/1.6/json/).
"""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from agent import __version__
from agent.bundle import TensorSpec
from fleet.artifacts.card import BOM_NAME, Card, Dataset
from fleet.artifacts.contract import Contract
from fleet.artifacts.onnx_model import OnnxModel
from fleet.artifacts.project import Project

__all__ = ["BOM_NAME", "bom_bytes"]

_ONNX_DOMAIN: Final = "ai.onnx"
"""How the empty domain is called."""


def bom_bytes(
    project: Project,
    contract: Contract,
    models: Mapping[str, OnnxModel],
    digests: Mapping[str, str],
    now_s: int,
) -> bytes:
    """The file.

    Args:
        project: names, version and card of the model.
        contract: what applications send and get.
        models: what is known of each stage's file, by its name.
        digests: lower-case hex sha256 of each file that belongs to the model (stages, golden tensors), by name.
        now_s: the time of the build, in seconds since the epoch.
    """
    ref = f"bundles/{project.device_class}/{project.model}-{project.version}"
    stages = [_stage(name, digests[name], model) for name, model in sorted(models.items())]
    tensors = [
        _tensor(name, digest) for name, digest in sorted(digests.items()) if name not in models
    ]
    datasets = [_dataset(one, number) for number, one in enumerate(project.card.datasets, 1)]
    body: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(now_s, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {
                "components": [{"type": "application", "name": "muster", "version": __version__}]
            },
            "component": _model(project, contract, datasets, ref),
        },
        "components": [*stages, *tensors, *datasets],
        "dependencies": [
            {"ref": ref, "dependsOn": [one["bom-ref"] for one in (*stages, *datasets)]},
        ],
    }
    derived = uuid.uuid5(uuid.NAMESPACE_URL, f"muster:{_json(body)}")
    return _json(body | {"serialNumber": f"urn:uuid:{derived}"}).encode() + b"\n"


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)


def _model(
    project: Project, contract: Contract, datasets: Sequence[Mapping[str, Any]], ref: str
) -> dict[str, Any]:
    card = project.card
    return _said(
        {
            "type": "machine-learning-model",
            "bom-ref": ref,
            "name": project.model,
            "version": project.version,
            "description": card.description,
            "licenses": [{"expression": card.license}] if card.license else [],
            "modelCard": _card(card, contract, [str(one["bom-ref"]) for one in datasets]),
        }
    )


def _card(card: Card, contract: Contract, datasets: Sequence[str]) -> dict[str, Any]:
    parameters = _said(
        {
            "approach": {"type": card.approach} if card.approach else {},
            "task": card.task,
            "modelArchitecture": card.architecture,
            "datasets": [{"ref": ref} for ref in datasets],
            "inputs": [{"format": _format(spec)} for spec in contract.inputs],
            "outputs": [{"format": _format(spec)} for spec in contract.outputs],
        }
    )
    metrics = [
        _said({"type": one.type, "value": one.value, "slice": one.slice}) for one in card.metrics
    ]
    return _said(
        {
            "modelParameters": parameters,
            "quantitativeAnalysis": {"performanceMetrics": metrics} if metrics else {},
            "considerations": (
                {"technicalLimitations": list(card.limitations)} if card.limitations else {}
            ),
        }
    )


def _format(spec: TensorSpec) -> str:
    """``image: FP32 [-1, 64], 0 to 16``; -1 is any size."""
    text = f"{spec.name}: {spec.dtype} {list(spec.shape)}"
    if spec.minimum is not None or spec.maximum is not None:
        low = "-inf" if spec.minimum is None else f"{spec.minimum:g}"
        high = "inf" if spec.maximum is None else f"{spec.maximum:g}"
        text += f", {low} to {high}"
    return text + (f", {len(spec.labels)} labels" if spec.labels else "")


def _stage(name: str, sha256: str, model: OnnxModel) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "mime-type": "application/octet-stream",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": _hashes(sha256),
        "properties": [
            {"name": key, "value": value} for key, value in _onnx_properties(model) if value
        ],
    }


def _onnx_properties(model: OnnxModel) -> Iterator[tuple[str, str]]:
    yield "muster:onnx:ir_version", str(model.ir_version)
    for domain, version in model.opsets:
        yield f"muster:onnx:opset:{domain or _ONNX_DOMAIN}", str(version)
    yield "muster:onnx:producer", model.producer


def _tensor(name: str, sha256: str) -> dict[str, Any]:
    """A golden tensor: data that the checks of a device use."""
    return {
        "type": "data",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": _hashes(sha256),
        "data": [{"type": "other", "name": "golden tensor"}],
    }


def _dataset(one: Dataset, number: int) -> dict[str, Any]:
    return _said(
        {
            "type": "data",
            "bom-ref": f"dataset:{number}",
            "name": one.name,
            "hashes": _hashes(one.sha256) if one.sha256 else [],
            "externalReferences": [{"type": "distribution", "url": one.url}] if one.url else [],
            "data": [{"type": "dataset", "name": one.name}],
        }
    )


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is empty."""
    return {key: value for key, value in values.items() if value not in ("", [], {})}
