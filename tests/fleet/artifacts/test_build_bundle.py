"""Building: real models become bundles; what would fail on a device is refused with what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.bundle.folder import read_bundle, verify_folder
from agent.runtime.pipeline import Pipeline
from fleet.artifacts.build import build_bundle
from fleet.artifacts.errors import BuildRefusedError, ProjectError
from fleet.errors import FleetError, ServerError
from tests.support.bundles import (
    NOW_S,
    build_tiny,
    digits_data,
    digits_project,
    magika_folder,
    magika_project,
    onnx_bytes,
    tiny_project,
)


def build(project: Path, out: Path, **more: Any) -> Any:
    return build_bundle(project, out, now_s=NOW_S, **more)


def edit(project: Path, old: str, new: str) -> None:
    text = (project / "muster.toml").read_text("utf-8")
    assert old in text
    (project / "muster.toml").write_text(text.replace(old, new, 1), "utf-8")


# --- what works -----------------------------------------------------------------------------------


def test_a_digits_bundle_answers_like_scikit_learn(tmp_path: Path) -> None:
    project = digits_project(tmp_path)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}

    result = build(project, tmp_path / "out")

    manifest, raw = read_bundle(tmp_path / "out")
    assert verify_folder(tmp_path / "out", expected_sha256=result.manifest_sha256) == manifest
    assert manifest == result.manifest
    assert json.loads(raw)["created_s"] == NOW_S
    assert [stage.name for stage in manifest.stages] == ["pre", "model"]
    label, probabilities = manifest.outputs
    assert (label.dtype, label.shape) == ("INT64", (-1,)), "taken from the model"
    assert probabilities.labels == tuple("0123456789")
    assert len(manifest.golden) == 3
    assert result.measures["golden_cases"] == 3
    assert result.warnings == ()
    data = digits_data()
    answers = Pipeline.load(tmp_path / "out", manifest).run({"image": data.test_images})
    assert (answers["label"] == data.test_labels).mean() > 0.94
    after = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert after == before, "the project was touched"


def test_magikas_own_model_becomes_a_bundle_whose_golden_case_is_recorded(tmp_path: Path) -> None:
    project = magika_project(tmp_path, recorded=True)
    with pytest.raises(BuildRefusedError) as refused:
        build(project, tmp_path / "out")
    assert "golden case python of" in str(refused.value)
    assert "says no outputs; add outputs = { ... }, or record what" in str(refused.value)
    assert "fleet bundle build --record-golden" in str(refused.value)

    result = build(project, tmp_path / "out", record_golden=True)

    model = result.manifest.file("model.onnx")
    assert model.size == (magika_folder() / "model.onnx").stat().st_size
    assert len(model.pieces) == -(-model.size // (256 * 1024))
    (case,) = result.manifest.golden
    scores = np.fromfile(tmp_path / "out" / case.outputs[0].tensor.file, "<f4")
    assert result.manifest.outputs[0].labels[int(scores.argmax())] == "python"
    assert verify_folder(tmp_path / "out")


def test_the_same_build_twice_is_the_same_bundle(tmp_path: Path) -> None:
    first = build_tiny(tmp_path / "a")
    second = build_tiny(tmp_path / "b")
    assert first.manifest_sha256 == second.manifest_sha256
    assert build_tiny(tmp_path / "c", "1.0.1").manifest_sha256 != first.manifest_sha256


def test_an_older_bundle_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    project = tiny_project(tmp_path)
    out = tmp_path / "out"
    build(project, out)
    (out / "manifest.json").chmod(0o400)
    build(project, out)
    assert verify_folder(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny-1.0.0"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ProjectError, match=r"mine is not empty and holds no bundle"):
        build(project, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_refused_build_leaves_the_older_bundle(tmp_path: Path) -> None:
    project = tiny_project(tmp_path)
    first = build(project, tmp_path / "out")
    edit(project, "atol = 1e-5", "atol = -1")
    with pytest.raises(ProjectError):
        build(project, tmp_path / "out")
    assert verify_folder(tmp_path / "out", expected_sha256=first.manifest_sha256)


def test_raw_golden_files_and_partial_outputs(tmp_path: Path) -> None:
    project = digits_project(tmp_path)
    image = np.load(project / "golden" / "digit-0-image.npy")
    (project / "golden" / "raw.bin").write_bytes(image.tobytes() * 2)
    (project / "golden" / "label.bin").write_bytes(np.array([0, 0], "<i8").tobytes())
    with (project / "muster.toml").open("a") as stream:
        stream.write(
            '[[golden]]\nname = "raw"\ninputs = { image = "golden/raw.bin" }\n'
            'outputs = { label = "golden/label.bin" }\n'
        )
    case = build(project, tmp_path / "out").manifest.golden[-1]
    assert case.inputs[0][1].shape == (2, 64)
    assert [output.name for output in case.outputs] == ["label"]


def test_bins_hold_equal_shares_of_what_the_golden_cases_expect(tmp_path: Path) -> None:
    project = tiny_project(tmp_path, extra='[observe]\noutput = "y"\nbins = 4\n')
    expected = np.load(project / "golden" / "y.npy")
    edges = np.quantile(expected, [0.25, 0.5, 0.75]).tolist()
    edit(project, 'outputs = { y = "golden/y.npy" }', "")  # the outputs are recorded
    observe = build(project, tmp_path / "out", record_golden=True).manifest.observe
    assert observe is not None
    assert observe.output == "y"
    assert observe.bins == pytest.approx(edges)


def test_what_cannot_be_seen_on_a_device_is_warned_about(tmp_path: Path) -> None:
    result = build(tiny_project(tmp_path, golden=False, output_range=None), tmp_path / "out")
    first, second = result.warnings
    assert first.startswith("no golden case: devices cannot tell")
    assert second.startswith("no range for the outputs y:")


def test_a_forgotten_scaling_builds_because_its_only_case_cannot_tell(tmp_path: Path) -> None:
    assert build(digits_project(tmp_path, scaled=False), tmp_path / "out").manifest.golden


# --- what is refused ------------------------------------------------------------------------------


def break_onnx(project: Path) -> None:
    (project / "model.onnx").write_bytes(b"PK\x03\x04 not an ONNX file")


def truncate_onnx(project: Path) -> None:
    (project / "model.onnx").write_bytes((project / "model.onnx").read_bytes()[:-5])


def unsorted_onnx(project: Path) -> None:
    model = onnx.load(project / "model.onnx")
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (project / "model.onnx").write_bytes(model.SerializeToString())


def wrong_golden(project: Path) -> None:
    y = np.load(project / "golden" / "y.npy")
    y[0, 2] += 0.01
    np.save(project / "golden" / "y.npy", y)


def nan_in_model(project: Path) -> None:
    node = helper.make_node("Log", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 4]) for n in "xy")
    (project / "model.onnx").write_bytes(onnx_bytes([node], [x], [y]))


def pickled_golden(project: Path) -> None:
    np.save(project / "golden" / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def double_golden(project: Path) -> None:
    np.save(project / "golden" / "x.npy", np.zeros((1, 4)))


def out_of_range_golden(project: Path) -> None:
    np.save(project / "golden" / "x.npy", np.full((1, 4), 101, np.float32))


def npz_golden(project: Path) -> None:
    np.savez(project / "golden" / "x.npz", x=np.zeros(4))
    edit(project, "golden/x.npy", "golden/x.npz")


def case_gone(project: Path) -> None:
    (project / "golden" / "y.npy").unlink()


def replacing(old: str, new: str) -> Callable[[Path], None]:
    return lambda project: edit(project, old, new)


REFUSED = [
    (break_onnx, BuildRefusedError, r"tiny-1.0.0/model.onnx is not an ONNX model"),
    (truncate_onnx, BuildRefusedError, r"tiny-1.0.0/model.onnx is not an ONNX model"),
    (unsorted_onnx, BuildRefusedError, r"model.onnx is a broken ONNX model: Nodes in a graph must"),
    (
        replacing('file = "model.onnx"', 'file = "../model.onnx"'),
        ProjectError,
        r"\[\[stage\]\] 'main': file name '../model.onnx' is not allowed: it must be relative",
    ),
    (
        replacing('"golden/x.npy"', '"../../etc/x.npy"'),
        ProjectError,
        r"\[\[golden\]\] 'small' x: '../../etc/x.npy' leaves the project; copy the file into",
    ),
    (
        replacing('file = "model.onnx"', 'file = "gone.onnx"'),
        ProjectError,
        r"\[\[stage\]\] 'main' needs the file .*gone.onnx, which is not there",
    ),
    (
        replacing("shape = [-1, 4]", "shape = [-1, 5]"),
        BuildRefusedError,
        r"'main': model.onnx takes 'x' as FP32\[-1, 4\], but \[\[input\]\] 'x' has the shape \[-1, 5\]",
    ),
    (
        replacing("shape = [-1, 4]", "shape = [-1, -1]"),
        BuildRefusedError,
        r"takes 'x' as FP32\[-1, 4\], but \[\[input\]\] 'x' has the shape \[-1, -1\]",
    ),
    (
        replacing('dtype = "FP32"', 'dtype = "FP64"'),
        BuildRefusedError,
        r"takes 'x' as FP32\[-1, 4\], but \[\[input\]\] 'x' is FP64; make them the same data type",
    ),
    (
        wrong_golden,
        BuildRefusedError,
        r"tiny 1.0.0 did not pass the trial that devices run \(trial_golden_failed\): golden case "
        r"'small', output 'y': 1 of 4 values are outside the tolerance.*correct the model or what",
    ),
    (nan_in_model, BuildRefusedError, r"\(trial_non_finite\): golden case 'small', output 'y'"),
    (pickled_golden, ProjectError, r"x: golden/x.npy is not a .npy file of plain numbers or text"),
    (double_golden, BuildRefusedError, r"golden/x.npy is FP64, the contract says FP32; save it with"),
    (
        out_of_range_golden,
        BuildRefusedError,
        r"golden/x.npy does not keep the contract: expected values from -100 to 100, got 101",
    ),
    (npz_golden, ProjectError, r"x = 'golden/x.npz' must be a .npy file \(numpy.save\) or a .bin"),
    (
        replacing("[objectives]", '[observe]\noutput = "y"\nbins = 30\n[objectives]'),
        ProjectError,
        r"\[observe\] bins = 30: the golden cases expect . different values of 'y', which do not make",
    ),
    (
        replacing("[objectives]", '[observe]\noutput = "z"\nbins = [1]\n[objectives]'),
        BuildRefusedError,
        r"makes a bundle that devices refuse: observe.output = 'z' is no output",
    ),
    (case_gone, ProjectError, r"\[\[golden\]\] 'small' y needs the file .*y.npy, which is not there"),
    (
        replacing("inputs = { x =", "inputs = { z ="),
        ProjectError,
        r"\[\[golden\]\] 'small' inputs: 'z' is no input; there are x",
    ),
    (
        replacing("latency_ms = 1000.0", "latency_ms = 0.001"),
        BuildRefusedError,
        r"\(trial_latency\): the fastest of its runs took .* make the model faster, or raise",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "kind", "message"), REFUSED)
def test_bad_project_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], kind: type[FleetError], message: str
) -> None:
    project = tiny_project(tmp_path)
    damage(project)
    with pytest.raises(kind, match=message):
        build(project, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-1.0.0"], "something was left"


def test_recording_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    project = tiny_project(tmp_path, output_range=None)
    nan_in_model(project)
    edit(project, 'outputs = { y = "golden/y.npy" }', "")
    with pytest.raises(BuildRefusedError, match="output 'y' holds NaN or infinity"):
        build(project, tmp_path / "out", record_golden=True)


def test_recording_what_breaks_the_contract_is_refused(tmp_path: Path) -> None:
    project = tiny_project(tmp_path, output_range=(0.0, 0.5))
    edit(project, 'outputs = { y = "golden/y.npy" }', "")
    with pytest.raises(BuildRefusedError, match="output 'y' does not keep the contract: expected"):
        build(project, tmp_path / "out", record_golden=True)


def test_a_crash_while_recording_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tiny_project(tmp_path)
    edit(project, 'outputs = { y = "golden/y.npy" }', "")
    monkeypatch.setattr("fleet.artifacts.record.child_command", lambda *_: ["/bin/false"])
    with pytest.raises(
        BuildRefusedError, match="crashed while recording golden cases: exit code 1"
    ):
        build(project, tmp_path / "out", record_golden=True)


def test_no_golden_file_may_replace_a_stage(tmp_path: Path) -> None:
    project = tiny_project(tmp_path)
    (project / "golden" / "small").mkdir()
    shutil.move(project / "model.onnx", project / "golden" / "small" / "in-0.bin")
    edit(project, 'file = "model.onnx"', 'file = "golden/small/in-0.bin"')
    with pytest.raises(
        ProjectError, match=r"'golden/small/in-0.bin' is a stage's file and a golden"
    ):
        build(project, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ServerError, match=r"cannot be written to .*file/out: .* choose another --out"
    ):
        build(tiny_project(tmp_path), tmp_path / "file" / "out")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ProjectError, match="link is not a folder; choose another --out"):
        build(tmp_path / "tiny-1.0.0", tmp_path / "link")
