"""From a project to a bundle that has passed what a device will ask of it.

Rules kept here: the project is only read; the bundle appears whole or not at all; what would be
refused on a device is refused here, with the place in the project; golden cases run through the real
pipeline, in the very trial that devices run.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from agent.bundle import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    ManifestError,
    manifest_sha256,
    parse_manifest,
)
from agent.bundle.folder import read_bundle
from agent.errors import BundleError
from agent.runtime import TrialLimits, TrialReason, run_trial_blocking
from fleet.artifacts.bom import BOM_NAME, bom_bytes
from fleet.artifacts.contract import Contract, fit_contract
from fleet.artifacts.cut import cut_file
from fleet.artifacts.errors import BuildRefusedError, ProjectError
from fleet.artifacts.golden import Golden, add_recorded, load_golden
from fleet.artifacts.observe import observe_of
from fleet.artifacts.onnx_model import OnnxModel, read_onnx
from fleet.artifacts.project import PROJECT_FILE, Project, read_project
from fleet.artifacts.record import record_outputs
from fleet.claims.model_signature import SIGNATURE_NAME, sign_files
from fleet.errors import ServerError

__all__ = ["BuildResult", "build_bundle"]

MAX_MODEL_BYTES: Final = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class BuildResult:
    """``measures``: what the trial measured on this machine (see ``agent.runtime.TrialReport``)."""

    path: Path
    manifest: Manifest
    manifest_sha256: str
    warnings: tuple[str, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Draft:
    """What a bundle is made of. ``models``: each stage's file by name."""

    project: Project
    contract: Contract
    models: Mapping[str, bytes]
    golden: Sequence[Golden]
    now_s: int

    def all_files(self) -> dict[str, bytes]:
        """Stages and golden tensors by name.

        Raises:
            ProjectError: two of them have one name.
        """
        files = dict(self.models)
        for case in self.golden:
            for name, raw in case.files.items():
                if files.setdefault(name, raw) is not raw:
                    raise ProjectError(
                        f"{name!r} is a stage's file and a golden case's; rename the stage's"
                    )
        return files


def build_bundle(
    project_dir: Path,
    out_dir: Path,
    *,
    now_s: int,
    record_golden: bool = False,
    limits: TrialLimits | None = None,
    claims_key: EllipticCurvePrivateKey | None = None,
) -> BuildResult:
    """Build the project in ``project_dir`` into the folder ``out_dir``.

    ``record_golden``: cases without outputs expect from now on what the pipeline answers now. ``claims_key``: signs
    ``model.sig``, on the curve P-256; None for a bundle without one. An older bundle in ``out_dir`` is replaced.

    Raises:
        ProjectError: the project cannot be understood.
        BuildRefusedError: what it makes would fail on a device.
        ServerError: the folder cannot be written.
        DeviceError: the trial cannot be started on this machine.
    """
    project = read_project(project_dir)
    _check_out(out_dir)
    files = _stage_files(project)
    models = {name: read_onnx(raw, f"{project.folder / name}") for name, raw in files.items()}
    contract = fit_contract(project, models)
    golden = [load_golden(project, contract, draft) for draft in project.golden]
    unknown = [case.draft.name for case in golden if not case.outputs]
    if unknown and not record_golden:
        raise BuildRefusedError(
            f"golden case{'s' if len(unknown) > 1 else ''} {', '.join(unknown)} of {project.folder} "
            f"say{'' if len(unknown) > 1 else 's'} no outputs; add outputs = {{ ... }}, or record what "
            f"the pipeline answers now: fleet bundle build --record-golden"
        )
    with _scratch(out_dir) as folder:
        if unknown:
            golden = _recorded(folder, project, contract, files, golden, now_s)
        draft = _Draft(project, contract, files, golden, now_s)
        manifest, raw = _write(folder, draft, _papers(draft, models, claims_key))
        measures = _try(folder, project, limits)
        _put_in_place(folder, out_dir)
    return BuildResult(out_dir, manifest, manifest_sha256(raw), _warnings(manifest), measures)


def _stage_files(project: Project) -> dict[str, bytes]:
    return {
        stage.file: project.read(
            stage.file, MAX_MODEL_BYTES, f"{PROJECT_FILE} [[stage]] {stage.name!r}"
        )
        for stage in project.stages
    }


def _recorded(
    folder: Path,
    project: Project,
    contract: Contract,
    files: Mapping[str, bytes],
    golden: list[Golden],
    now_s: int,
) -> list[Golden]:
    """The cases, each with outputs."""
    open_cases = [case for case in golden if not case.outputs]
    inputs = {name: raw for case in open_cases for name, raw in case.files.items()}
    # What is observed may need the outputs that are recorded only now.
    unobserved = replace(project, observe=None)
    _write(folder, _Draft(unobserved, contract, {**files, **inputs}, [], now_s), {})
    answers = iter(record_outputs(folder, open_cases))
    return [
        case if case.outputs else add_recorded(case, contract, next(answers)) for case in golden
    ]


def _papers(
    draft: _Draft, models: Mapping[str, OnnxModel], claims_key: EllipticCurvePrivateKey | None
) -> dict[str, bytes]:
    """What lies in a bundle for those who check it elsewhere: the bill of materials, and the signature over all."""
    digests = {name: _sha256(raw) for name, raw in draft.all_files().items()}
    bom = bom_bytes(draft.project, draft.contract, models, digests, draft.now_s)
    papers = {BOM_NAME: bom}
    if claims_key is not None:
        name = f"{draft.project.model}-{draft.project.version}"
        signed = digests | {BOM_NAME: _sha256(bom)}
        papers[SIGNATURE_NAME] = sign_files(name, signed, claims_key)
    return papers


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _write(folder: Path, draft: _Draft, papers: Mapping[str, bytes]) -> tuple[Manifest, bytes]:
    """Write files and manifest; what was parsed back from the manifest's bytes is returned."""
    project, contract, golden = draft.project, draft.contract, draft.golden
    files = {**draft.all_files(), **papers}
    manifest = Manifest(
        model=project.model,
        version=project.version,
        device_class=project.device_class,
        created_s=draft.now_s,
        files=tuple(cut_file(name, raw) for name, raw in sorted(files.items())),
        stages=contract.stages,
        inputs=contract.inputs,
        outputs=contract.outputs,
        golden=tuple(case.case for case in golden),
        objectives=project.objectives,
        requirements=project.requirements,
        parameters=project.parameters,
        intra_op_threads=project.intra_op_threads,
        observe=observe_of(project.observe, golden),
    )
    raw_manifest = manifest.to_bytes()
    if len(raw_manifest) > MAX_MANIFEST_BYTES:
        raise BuildRefusedError(
            f"the manifest of {project.folder} would have {len(raw_manifest)} bytes, at most "
            f"{MAX_MANIFEST_BYTES} are allowed; use fewer labels or golden cases, or a smaller model"
        )
    try:
        manifest = parse_manifest(raw_manifest)
    except ManifestError as error:
        raise BuildRefusedError(
            f"{project.folder} makes a bundle that devices refuse: {error}"
        ) from error
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    (folder / MANIFEST_NAME).write_bytes(raw_manifest)
    return manifest, raw_manifest


def _try(folder: Path, project: Project, limits: TrialLimits | None) -> Mapping[str, float]:
    report = run_trial_blocking(folder, limits)
    if not report.ok:
        hint = ""
        if report.reason_code == TrialReason.GOLDEN_FAILED:
            hint = "; correct the model or what the case expects (atol and rtol say how close is close)"
        elif report.reason_code == TrialReason.LATENCY:
            hint = "; make the model faster, or raise [objectives] latency_ms"
        elif report.reason_code == TrialReason.MEMORY:
            hint = "; make the model smaller, or raise [requires] memory_bytes"
        raise BuildRefusedError(
            f"{project.model} {project.version} did not pass the trial that devices run "
            f"({report.reason_code}): {report.reason}{hint}"
        )
    return report.measures


def _warnings(manifest: Manifest) -> tuple[str, ...]:
    found = []
    if not manifest.golden:
        found.append(
            "no golden case: devices cannot tell a model that answers wrongly before it serves; "
            "add [[golden]] with inputs and --record-golden"
        )
    open_outputs = [
        spec.name
        for spec in manifest.outputs
        if spec.dtype.startswith("FP") and spec.minimum is None and spec.maximum is None
    ]
    if open_outputs:
        found.append(
            f"no range for the outputs {', '.join(open_outputs)}: a device in probation can only see "
            f"errors, NaN and slowness; add range = [low, high]"
        )
    return tuple(found)


# --- the folder -----------------------------------------------------------------------------------


def _check_out(out_dir: Path) -> None:
    """Refuse to replace anything but a bundle."""
    if not out_dir.exists() and not out_dir.is_symlink():
        return
    if not out_dir.is_dir() or out_dir.is_symlink():
        raise ProjectError(f"{out_dir} is not a folder; choose another --out")
    if not any(out_dir.iterdir()):
        return
    try:
        read_bundle(out_dir)
    except BundleError as error:
        raise ProjectError(
            f"{out_dir} is not empty and holds no bundle that could be replaced; choose another --out"
        ) from error


@contextmanager
def _scratch(out_dir: Path) -> Iterator[Path]:
    """A folder beside ``out_dir``, gone at the end. Errors of the disk become ours."""
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out_dir.name}.", dir=out_dir.parent, ignore_cleanup_errors=True
        ) as name:
            folder = Path(name) / "bundle"
            folder.mkdir()
            yield folder
    except OSError as error:
        raise ServerError(
            f"the bundle cannot be written to {out_dir}: {error.strerror or error}; check the disk and "
            f"its permissions, or choose another --out"
        ) from error


def _put_in_place(folder: Path, out_dir: Path) -> None:
    if out_dir.exists():
        os.replace(out_dir, folder.with_name("old"))  # noqa: PTH105 (a folder, over nothing)
    try:
        os.replace(folder, out_dir)  # noqa: PTH105
    except OSError:
        old = folder.with_name("old")
        if old.exists():
            os.replace(old, out_dir)  # noqa: PTH105
        raise
    shutil.rmtree(folder.with_name("old"), ignore_errors=True)
