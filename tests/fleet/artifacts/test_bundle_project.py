"""muster.toml: every key is known, every value of its kind, every message says where and what to do."""

from pathlib import Path

import pytest

from fleet.artifacts.errors import ProjectError
from fleet.artifacts.project import ObserveDraft, read_project
from tests.support.bundles import tiny_project


def test_a_project_is_read_as_written(tmp_path: Path) -> None:
    folder = tiny_project(
        tmp_path,
        extra='[requires]\nhardware = ["x86_64"]\nonnxruntime = ">=1.20"\n\n'
        "[parameters]\nthreshold = 0.5\non = true\n\n[runtime]\nintra_op_threads = 2\n",
    )
    project = read_project(folder)
    assert (project.model, project.version, project.device_class) == ("tiny", "1.0.0", "edge")
    assert project.stages[0].outputs is None
    assert (project.inputs[0].minimum, project.inputs[0].maximum) == (-100.0, 100.0)
    assert project.outputs[0].dtype is None
    assert project.requirements.classes == ("edge",)
    assert project.requirements.onnxruntime == ">=1.20"
    assert project.parameters == {"threshold": 0.5, "on": True}
    assert project.intra_op_threads == 2


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", None),
        ('[observe]\noutput = "y"\nbins = [0, 1.5]\n', ObserveDraft("y", (0.0, 1.5), "", 0.0)),
        ('[observe]\noutput = "y"\nbins = 4\n', ObserveDraft("y", 4, "", 0.0)),
        (
            '[observe]\noutput = "y"\nconfidence = "s"\nlow_confidence = -0.5\n',
            ObserveDraft("y", (), "s", -0.5),
        ),
    ],
)
def test_what_is_observed(tmp_path: Path, written: str, expected: ObserveDraft | None) -> None:
    assert read_project(tiny_project(tmp_path, extra=written)).observe == expected


def test_an_open_range_and_labels_from_a_file(tmp_path: Path) -> None:
    folder = tiny_project(tmp_path, output_range=None)
    text = (folder / "muster.toml").read_text("utf-8")
    more = 'name = "y"\nrange = [0, inf]\nlabels = "labels.txt"\n'
    (folder / "muster.toml").write_text(text.replace('name = "y"\n', more), "utf-8")
    (folder / "labels.txt").write_bytes("ett\r\ntvå\r\ntre\r\nfyra\r\n".encode())
    (output,) = read_project(folder).outputs
    assert (output.minimum, output.maximum) == (0.0, None)
    assert output.labels == ("ett", "två", "tre", "fyra")


BROKEN = [
    ("[bundle]", "[bundel]", "unknown key 'bundel'; did you mean 'bundle'?"),
    ('version = "1.0.0"', 'versoin = "1"', "[bundle] has the unknown key 'versoin'; did you mean"),
    ('version = "1.0.0"', "version = 1.0", "[bundle] version = 1.0 must be text"),
    ('version = "1.0.0"', 'version = "1/0"', "version = '1/0' must be text that matches"),
    ('version = "1.0.0"\n', "", "[bundle] lacks 'version', which must be text"),
    ('model = "tiny"', 'model = "Tiny"', "[bundle] model = 'Tiny' must be text that matches"),
    ('class = "edge"', 'class = ""', "[bundle] class = '' must be text that matches"),
    ("[[stage]]", "[stage]", "stage must be written as [[stage]] tables"),
    ('file = "model.onnx"', "onnx = 1", "[[stage]] 'main' has the unknown key 'onnx'; known are"),
    ('file = "model.onnx"', 'file = "m.onnx"\ninputs = ["x"]', "inputs = ['x'] must be a table of"),
    ("shape = [-1, 4]", "shape = [-2]", "[[input]] 'x' shape = [-2] must be a list of sizes"),
    ("shape = [-1, 4]", "shape = 4", "[[input]] 'x' shape = 4 must be a list of sizes"),
    ('dtype = "FP32"', 'dtype = "float32"', "dtype = 'float32' must be one of BOOL, UINT8"),
    ("range = [-100.0, 100.0]", "range = [1, 0]", "range = [1, 0] must be a range whose low end"),
    ("range = [-100.0, 100.0]", "range = [nan, 0]", "range = [nan, 0] must be a range whose low"),
    ("range = [-100.0, 100.0]", "range = 5", "range = 5 must be a range [low, high]"),
    ("range = [-100.0, 100.0]", 'labels = ["a", "a"]', "labels: 'a' is empty or comes twice"),
    ("range = [-100.0, 100.0]", 'labels = "no.txt"', "labels needs the file"),
    ("range = [-100.0, 100.0]", 'labels = "/etc/hosts"', "'/etc/hosts' leaves the project"),
    ('name = "small"', 'name = "a b"', "[[golden]] 'a b': name 'a b' is not allowed"),
    ('name = "small"', 'name = "a/b"', "name = 'a/b' must be a name without '/'"),
    ('inputs = { x = "golden/x.npy" }', "", "[[golden]] 'small' lacks 'inputs', which must be"),
    ("atol = 1e-5", "atol = true", "[[golden]] 'small' atol = True must be a number of at least 0"),
    ("latency_ms", "latency_s", "[objectives] has the unknown key 'latency_s'; did you mean 'latency"),
    ("latency_ms = 1000.0", "max_error_rate = 2", "max_error_rate = 2 must be a number from 0 to 1"),
    ("[objectives]", "[parameters]\na = [1]\n[objectives]", "a = [1] must be text, a number or"),
    ("[objectives]", '[requires]\nclasses = ["b"]\n[objectives]', "has the bundle's own class 'edge'"),
    ("[objectives]", '[requires]\nagent = "new"\n[objectives]', "must be a version specifier such as"),
    ("[objectives]", "[runtime]\nintra_op_threads = -1\n[objectives]", "a whole number from 0 to 256"),
    ("[objectives]", '[observe]\noutputs = "y"\n[objectives]', "unknown key 'outputs'; did you mean 'output'"),
    ("[objectives]", '[observe]\nconfidence = "y"\n[objectives]', "needs confidence and low_confidence"),
    ("[objectives]", "[observe]\nlow_confidence = 1\n[objectives]", "needs confidence and low_confidence"),
    ("[objectives]", "[observe]\nbins = []\n[objectives]", "bins = [] must be a list of rising edges"),
    ("[objectives]", "[observe]\nbins = 'a'\n[objectives]", "bins = 'a' must be a list of rising edges"),
    ("[objectives]", "[observe]\nbins = 1\n[objectives]", "bins = 1 must be a whole number from 2 to 30"),
    ("[objectives]", "[observe]\nbins = true\n[objectives]", "bins = True must be a whole number"),
    ("[bundle]", "[bundle", "muster.toml is not valid TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BROKEN)
def test_broken_project_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = tiny_project(tmp_path)
    text = (folder / "muster.toml").read_text("utf-8")
    assert old in text
    (folder / "muster.toml").write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(ProjectError) as refused:
        read_project(folder)
    assert message in str(refused.value)
    assert "muster.toml" in str(refused.value)


@pytest.mark.parametrize("table", ["stage", "input", "output"])
def test_a_project_without_stages_or_contract_is_refused(tmp_path: Path, table: str) -> None:
    folder = tiny_project(tmp_path, golden=False)
    text = (folder / "muster.toml").read_text("utf-8")
    head, _, tail = text.partition(f"[[{table}]]")
    (folder / "muster.toml").write_text(head + "[" + tail.partition("\n[")[2], "utf-8")
    with pytest.raises(ProjectError, match=rf"muster.toml has no \[\[{table}\]\]; add one"):
        read_project(folder)


def test_what_is_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"a bundle project needs the file .*muster.toml, which"):
        read_project(tmp_path)
    with pytest.raises(ProjectError, match=r"gone is not a folder; give the folder that holds"):
        read_project(tmp_path / "gone")
    (tmp_path / "muster.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ProjectError, match=r"muster.toml is not valid TOML: .*decode"):
        read_project(tmp_path)
