"""The checks that a bundle has to pass before it is published, one by one, so that they can be attested.

Rules kept here: they are those of `fleet bundle verify` and of a device's trial, run anew on what lies in the folder; a
check that was not reached is not named as passed.
"""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent import __version__
from agent.bundle import Manifest
from agent.bundle.folder import open_bundle_file, verify_folder
from agent.errors import BundleError
from agent.runtime import TrialLimits, TrialReport, run_trial_blocking
from agent.runtime.onnx_scan import scan_model
from agent.runtime.verdict import clean_text
from fleet.claims.attestation import Checked

__all__ = ["check_bundle"]

MAX_REASON_CHARS: Final = 160
Trial = Callable[[Path, TrialLimits | None], TrialReport]


def check_bundle(folder: Path, manifest_sha256: str, trial: Trial = run_trial_blocking) -> Checked:
    """Hash every file, look through every model, and try the bundle as a device would.

    Args:
        folder: the bundle.
        manifest_sha256: digest of its manifest, which is what is spoken of.
        trial: how a bundle is tried.

    Returns:
        ``files``, ``model FILE`` for each stage, ``trial``, ``golden CASE`` for each golden case. A failed check says
        why; a bundle without golden cases is a warning.

    Raises:
        DeviceError: the disk cannot be read, or the trial cannot be started on this machine.
    """
    ran_on = {"agent": __version__, "onnxruntime": _onnxruntime(), "machine": platform.machine()}
    try:
        manifest = verify_folder(folder, expected_sha256=manifest_sha256)
    except BundleError as error:
        return Checked(failed=(_failed("files", str(error)),), ran_on=ran_on)
    passed, failed = ["files"], []
    for stage in manifest.stages:
        try:
            with open_bundle_file(folder, stage.file) as file:
                scan_model(file, stage.file)
            passed.append(f"model {stage.file}")
        except BundleError as error:
            failed.append(_failed(f"model {stage.file}", str(error)))
    if failed:
        return Checked(tuple(passed), (), tuple(failed), ran_on)
    report = trial(folder, None)
    if not report.ok:
        failed.append(_failed("trial", f"{report.reason_code}: {report.reason}"))
        return Checked(tuple(passed), (), tuple(failed), ran_on)
    passed += ["trial", *(f"golden {case.name}" for case in manifest.golden)]
    return Checked(tuple(passed), _warned(manifest), (), ran_on)


def _warned(manifest: Manifest) -> tuple[str, ...]:
    return () if manifest.golden else ("golden cases: there is none",)


def _failed(check: str, reason: str) -> str:
    return clean_text(f"{check}: {reason}", MAX_REASON_CHARS)


def _onnxruntime() -> str:
    from importlib.metadata import version

    return version("onnxruntime")
