"""Bombs, each from a model of a few hundred bytes: the trial refuses it with the right reason and is gone."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from agent.bundle import Requirements
from agent.runtime import TrialLimits, run_trial
from agent.runtime.errors import ForbiddenModelError
from agent.runtime.onnx_scan import ScanLimits, scan_bundle
from tests.support.bombs import (
    folded_memory,
    folded_time,
    many_nodes,
    nested_loops,
    repeated,
    resized,
    sparse_claim,
    vast,
)
from tests.support.onnx_models import BundleMaker, scale_model

HURRIED = TrialLimits(cpu_s=2, gives_way_s=0.0)
SMALL = Requirements(memory_bytes=64 << 20)


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (vast, "trial_memory", "more memory than the 64.0 MiB allowed"),
        (folded_memory, "trial_memory", "more memory than the 64.0 MiB allowed"),
        (repeated, "trial_memory", "more memory than the 64.0 MiB allowed"),
        (resized, "trial_memory", "more memory than the 64.0 MiB allowed"),
        (folded_time, "trial_timeout", "more than 2 s of processor time"),
        (nested_loops, "trial_timeout", "more than 2 s of processor time"),
        (sparse_claim, "trial_forbidden", "a sparse tensor of 1099511627776 values"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_bomb_is_refused(
    tmp_path: Path, make: Callable[[], bytes], code: str, said: str
) -> None:
    made = BundleMaker(models={"model.onnx": make()}, requirements=SMALL).write(tmp_path / "b")
    assert made.manifest.size_bytes < 4096
    report = await run_trial(made.path, HURRIED)
    assert (report.ok, report.reason_code) == (False, code), report.reason
    assert said in report.reason
    assert not [child for child in psutil.Process().children() if str(made.path) in child.cmdline()]


async def test_a_trial_says_what_it_was_kept_from(tmp_path: Path) -> None:
    made = BundleMaker().write(tmp_path / "b")
    report = await run_trial(made.path, TrialLimits(gives_way_s=0.0))
    assert report.ok
    assert set(report.measures) >= {
        "network_isolated",
        "files_confined",
        "calls_confined",
        "privileges_dropped",
    }


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (ScanLimits(max_nodes=50), "has more than 50 nodes"),
        (ScanLimits(max_parts=50), "has more than 50 parts"),
    ],
)
def test_a_model_without_end_is_not_looked_at_to_its_end(
    tmp_path: Path, limits: ScanLimits, said: str
) -> None:
    made = BundleMaker(models={"model.onnx": many_nodes(100)}).write(tmp_path / "b")
    scan_bundle(made.path, made.manifest)
    with pytest.raises(ForbiddenModelError, match=said):
        scan_bundle(made.path, made.manifest, limits)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x18\x00\x00\x00ORTM", "an .ort file"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x80\x04\x95", "a Python pickle"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x7fELF", "a native library"),
        (b"\x1f\x8b\x08", "a gzip archive"),
    ],
)
def test_what_is_no_onnx_model_is_named(tmp_path: Path, head: bytes, kind: str) -> None:
    made = BundleMaker(models={"model.onnx": head + bytes(64)}).write(tmp_path / "b")
    with pytest.raises(ForbiddenModelError, match=f"model.onnx is {kind}"):
        scan_bundle(made.path, made.manifest)


def test_a_tensor_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    import onnx

    model = onnx.load_from_string(scale_model())
    model.graph.initializer[0].dims.extend([1 << 40])
    made = BundleMaker(models={"model.onnx": model.SerializeToString()}).write(tmp_path / "b")
    with pytest.raises(ForbiddenModelError, match=r"claims 1099511627776 values in \d+ bytes"):
        scan_bundle(made.path, made.manifest)


def test_a_tensor_of_endless_dimensions_is_refused(tmp_path: Path) -> None:
    import onnx

    model = onnx.load_from_string(scale_model())
    model.graph.initializer[0].dims.extend([2**62] * 1000)
    made = BundleMaker(models={"model.onnx": model.SerializeToString()}).write(tmp_path / "b")
    with pytest.raises(ForbiddenModelError, match="a tensor of more than 64 dimensions"):
        scan_bundle(made.path, made.manifest)
