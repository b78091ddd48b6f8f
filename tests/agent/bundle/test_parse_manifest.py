"""The manifest: canonical bytes, strict parsing, one message a broken rule."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import (
    MAX_MANIFEST_BYTES,
    PIECE_BYTES,
    BundleFile,
    GoldenCase,
    GoldenOutput,
    GoldenTensor,
    Manifest,
    ManifestError,
    Objectives,
    Observe,
    Piece,
    Requirements,
    Stage,
    TensorSpec,
    check_manifest,
    check_name,
    check_names,
    manifest_sha256,
    parse_manifest,
)

A, B = "a" * 64, "b" * 64


def a_file(name: str, size: int = 16, sha256: str = A) -> BundleFile:
    return BundleFile(name, size, sha256, (Piece(sha256, size),))


def a_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "model": "digits",
        "version": "1.2.0",
        "device_class": "edge",
        "created_s": 1_700_000_000,
        "files": (a_file("models/pre.onnx"), a_file("model.onnx", 20, B), a_file("golden/in.bin")),
        "stages": (
            Stage("pre", "models/pre.onnx", (("x", "image"),), (("scaled", "features"),)),
            Stage("model", "model.onnx", (("features", "in"),), (("out", "y"),)),
        ),
        "inputs": (TensorSpec("x", "FP32", (-1, 4), 0.0, 16.0),),
        "outputs": (TensorSpec("y", "FP32", (-1, 4), labels=("null", "ett", "två", "tre")),),
        "golden": (
            GoldenCase(
                "one",
                (("x", GoldenTensor("golden/in.bin", "FP32", (1, 4))),),
                (GoldenOutput("y", GoldenTensor("golden/in.bin", "FP32", (1, 4)), 1e-5, 1e-3),),
            ),
        ),
        "objectives": Objectives(latency_ms=50.0),
        "requirements": Requirements(("edge",), ("x86_64",), 1 << 28, ">=1.20", ">=0.1"),
        "parameters": {"threshold": 0.5, "name": "digits", "count": 3, "on": True},
    }
    return Manifest(**{**values, **changes})


def changed(change: Callable[[Any], object]) -> bytes:
    body = json.loads(a_manifest().to_bytes())
    change(body)
    return json.dumps(body).encode()


def setting(*path: Any, to: Any) -> Callable[[Any], object]:
    def change(body: Any) -> None:
        for step in path[:-1]:
            body = body[step]
        body[path[-1]] = to

    return change


def test_bytes_are_canonical_and_read_back_equal() -> None:
    manifest = a_manifest()
    raw = manifest.to_bytes()
    assert parse_manifest(raw) == manifest
    assert parse_manifest(raw).to_bytes() == raw
    assert raw.endswith(b"}\n")
    assert b'"labels":["null","ett","tv\xc3\xa5","tre"]' in raw
    assert raw.startswith(b'{"created_s":1700000000,"device_class":"edge","files":[')


OBSERVE = Observe("y", (), "y", 0.6)


@pytest.mark.parametrize(
    "observe", [OBSERVE, Observe("y", (0.25, 1.5)), Observe("", (), "y", -2.0)]
)
def test_what_is_observed_is_read_back(observe: Observe) -> None:
    manifest = a_manifest(observe=observe)
    assert parse_manifest(manifest.to_bytes()) == manifest


def test_a_manifest_without_it_is_what_older_agents_read() -> None:
    assert b"observe" not in a_manifest().to_bytes()
    assert parse_manifest(a_manifest().to_bytes()).observe is None


OUTPUTS = {
    "scores": TensorSpec("y", "FP32", (-1, 4), labels=("null", "ett", "två", "tre")),
    "values": TensorSpec("y", "FP32", (-1, 4)),
    "class": TensorSpec("y", "INT64", (-1,)),
    "text": TensorSpec("y", "BYTES", (-1,)),
    "truth": TensorSpec("y", "BOOL", (-1,)),
}


@pytest.mark.parametrize(
    ("output", "observe", "message"),
    [
        ("scores", Observe("z"), "observe.output = 'z' is no output (there are: y)"),
        ("scores", Observe("y", (), "z"), "observe.confidence = 'z' is no output"),
        ("scores", Observe(), "observe names neither an output nor a confidence; leave it out"),
        ("scores", Observe("", (1.0,), "y"), "observe.bins needs observe.output"),
        ("scores", Observe("y", (1.0, 1.0)), "observe.bins = [1.0, 1.0] must rise"),
        ("values", Observe("y"), "'y' is FP32 and has neither labels nor observe.bins to count by"),
        ("text", Observe("y", (1.0,)), "observe.output = 'y' is BYTES and has no bins"),
        ("truth", Observe("y", (1.0,)), "observe.output = 'y' is BOOL and has no bins"),
        ("class", Observe("y", (), "y", 0.5), "'y' is INT64, a confidence is a float"),
        ("class", Observe("y"), ""),
        ("text", Observe("y"), ""),
        ("truth", Observe("y"), ""),
        ("values", Observe("y", (1.0, 2.0), "y", 0.5), ""),
    ],
)
def test_only_what_can_be_observed_is(output: str, observe: Observe, message: str) -> None:
    manifest = a_manifest(outputs=(OUTPUTS[output],), golden=(), observe=observe)
    if not message:
        check_manifest(manifest)
        return
    with pytest.raises(ManifestError) as refused:
        check_manifest(manifest)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        ([], "observe must be an object, not []"),
        ({"output": "y"}, "observe.bins is missing"),
        ({**asdict(OBSERVE), "bin": []}, "observe has unknown keys bin"),
        ({**asdict(OBSERVE), "bins": [True]}, "observe.bins[0] must be a number"),
        ({**asdict(OBSERVE), "bins": list(range(30))}, "observe.bins must be a list of 0 to 29"),
        ({**asdict(OBSERVE), "low_confidence": "0.6"}, "observe.low_confidence must be a number"),
    ],
)
def test_broken_observe_is_refused(observe: Any, message: str) -> None:
    with pytest.raises(ManifestError) as refused:
        parse_manifest(changed(setting("observe", to=observe)))
    assert message in str(refused.value)


def test_what_a_manifest_says_of_itself() -> None:
    manifest = a_manifest()
    assert manifest.path == "bundles/edge/digits-1.2.0"
    assert manifest.size_bytes == 52
    assert [piece.sha256 for piece in manifest.pieces()] == [A, B]
    assert manifest.file("model.onnx").size == 20
    with pytest.raises(ManifestError, match=r"has no file 'x'; it has models/pre.onnx, model.onnx"):
        manifest.file("x")
    assert manifest_sha256(b"") == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


BROKEN = [
    (setting("format", to=2), "has format 2; this agent reads format 1"),
    (setting("format", to=True), "has format True; this agent reads format 1"),
    (setting("surprise", to=1), "manifest.json has unknown keys surprise"),
    (lambda body: body.pop("model"), "manifest.json.model is missing"),
    (setting("model", to="Digits"), "manifest.json.model = 'Digits' does not match"),
    (setting("model", to="digits\n"), "manifest.json.model = 'digits\\n' does not match"),
    (setting("version", to="1 0"), "manifest.json.version = '1 0' does not match"),
    (setting("device_class", to="../up"), "manifest.json.device_class = '../up' does not match"),
    (setting("created_s", to=-1), "manifest.json.created_s must be a whole number from 0"),
    (setting("created_s", to=True), "manifest.json.created_s must be a whole number"),
    (setting("files", to=[]), "manifest.json.files must be a list of 1 to 1024 items, not 0 items"),
    (setting("files", to={}), "manifest.json.files must be a list of 1 to 1024 items, not {}"),
    (setting("files", 0, "sha256", to="A" * 64), "manifest.json.files[0].sha256 = 'AAA"),
    (setting("files", 0, "size", to=17), "('models/pre.onnx') says 17 bytes, but its pieces add up"),
    (setting("files", 0, "mode", to=4), "manifest.json.files[0] has unknown keys mode"),
    (
        setting("files", 0, "pieces", 0, "size", to=PIECE_BYTES + 1),
        "manifest.json.files[0].pieces[0].size must be a whole number from 1 to 262144",
    ),
    (setting("files", 0, "name", to="../model.onnx"), "file name '../model.onnx' is not allowed"),
    (setting("files", 0, "name", to="/etc/passwd"), "file name '/etc/passwd' is not allowed"),
    (setting("files", 0, "name", to="a/.hidden"), "file name 'a/.hidden' is not allowed"),
    (setting("files", 0, "name", to="a/b/c/d"), "is more than 3 folders deep"),
    (setting("files", 0, "name", to="Manifest.json"), "is reserved for the manifest itself"),
    (setting("files", 0, "name", to="MODEL.onnx"), "'MODEL.onnx' and 'model.onnx' differ by case"),
    (setting("files", 0, "name", to="model.onnx"), "file name 'model.onnx' comes twice"),
    (setting("files", 0, "name", to="golden"), "file name 'golden' is both a file and a folder"),
    (
        lambda body: body["files"][2].update(
            size=8, pieces=[{"sha256": A, "size": 8}], sha256=A
        ),
        "file 'golden/in.bin' gives piece aaaaaaaaaaaa 8 bytes, elsewhere it has 16",
    ),
    (setting("stages", 0, "file", to="gone.onnx"), "stage 'pre' runs 'gone.onnx', which is not a"),
    (
        setting("stages", 1, "inputs", to=[["other", "in"]]),
        "stage 'model' reads 'other', which is no input and no earlier stage's output",
    ),
    (
        setting("stages", 1, "outputs", to=[["out", "x"]]),
        "stage 'model' writes 'x', which exists already; use another name",
    ),
    (setting("stages", 1, "outputs", to=[["out"]]), "stages[1].outputs[0] must be a list of two"),
    (setting("stages", 1, "outputs", to=[]), "stages[1].outputs is empty"),
    (setting("stages", 1, "name", to="pre"), "stages has 'pre' twice"),
    (setting("outputs", 0, "name", to="z"), "output 'z' is produced by no stage"),
    (setting("inputs", 0, "dtype", to="float"), "inputs[0].dtype = 'float' is not one of BOOL"),
    (setting("inputs", 0, "shape", to=[-2]), "inputs[0].shape[0] must be a whole number"),
    (setting("inputs", 0, "minimum", to=17), "inputs[0] (x) has minimum 17.0 above maximum 16.0"),
    (setting("inputs", 0, "minimum", to="0"), "inputs[0].minimum must be a number"),
    (setting("inputs", 0, "dtype", to="BYTES"), "(x) is BYTES, which has no minimum or maximum"),
    (setting("outputs", 0, "labels", to=["a", "a"]), "outputs[0].labels has 'a' twice"),
    (setting("outputs", 0, "labels", to=["\ud800"]), "outputs[0].labels[0] must be text"),
    (
        setting("golden", 0, "inputs", to=[["q", {"file": "f", "dtype": "FP32", "shape": []}]]),
        "golden case 'one' must give every input (x), it gives q",
    ),
    (
        setting("golden", 0, "outputs", 0, "name", to="q"),
        "golden case 'one' expects 'q', which is no output (y)",
    ),
    (
        setting("golden", 0, "inputs", 0, 1, "file", to="gone.bin"),
        "golden case 'one', input 'x' is in 'gone.bin', which is not a file of the bundle",
    ),
    (
        setting("golden", 0, "inputs", 0, 1, "shape", to=[1, 3]),
        "golden case 'one', input 'x' is FP32[1, 3], the contract says FP32[-1, 4]",
    ),
    (
        setting("golden", 0, "inputs", 0, 1, "shape", to=[2, 4]),
        "input 'x' needs 32 bytes for FP32[2, 4], file 'golden/in.bin' has 16",
    ),
    (setting("golden", 0, "outputs", 0, "atol", to=-1), "golden[0].outputs[0].atol must be a number"),
    (setting("objectives", "max_error_rate", to=2), "objectives.max_error_rate must be a number"),
    (setting("objectives", "latency_ms", to=0), "objectives.latency_ms must be a number from 0.001"),
    (setting("requirements", "onnxruntime", to="new"), "= 'new' is not a version specifier"),
    (setting("requirements", "classes", to=["cam"]), "leaves out the bundle's own class 'edge'"),
    (setting("parameters", "deep", to={}), "parameters.deep must be text, a number or true/false"),
    (setting("parameters", to=[]), "parameters must be an object of at most 256 keys, not []"),
    (setting("intra_op_threads", to=100_000), "intra_op_threads must be a whole number from 0"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_broken_manifest_is_refused_with_the_place(
    change: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(ManifestError) as refused:
        parse_manifest(changed(change))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "manifest.json is not valid JSON"),
        (b"\xff", "manifest.json is not valid JSON"),
        (b"[" * 100_000, "manifest.json is not valid JSON"),
        (b"1" * 5000, "manifest.json is not valid JSON"),
        (b"[]", "manifest.json must be an object, not []"),
        (b'{"format":1,"format":1}', "manifest.json has a repeated key in {format, format}"),
        (b'{"format":NaN}', "manifest.json holds NaN, which is not JSON"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "manifest.json is 524289 bytes; at most 524288"),
    ],
)
def test_what_is_no_json_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(ManifestError) as refused:
        parse_manifest(raw)
    assert message in str(refused.value)


def test_a_number_beyond_a_double_is_refused() -> None:
    raw = changed(setting("objectives", "latency_ms", to=12345.0)).replace(b"12345.0", b"1e999")
    with pytest.raises(ManifestError, match=r"objectives.latency_ms must be a number .* not inf"):
        parse_manifest(raw)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _places(inner, (*path, index))
    return found


_BODY = json.loads(a_manifest().to_bytes())


@given(place=st.sampled_from(_places(_BODY)), value=_JSON)
def test_any_value_anywhere_is_read_or_refused(place: tuple[Any, ...], value: Any) -> None:
    body = copy.deepcopy(_BODY)
    setting(*place, to=value)(body)
    try:
        manifest = parse_manifest(json.dumps(body).encode())
    except ManifestError:
        return
    assert parse_manifest(manifest.to_bytes()) == manifest


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(raw)


@pytest.mark.parametrize("name", ["a", "a.b", "a/b/c", "_x", "-", "A-1.onnx", "a..b"])
def test_allowed_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "a//b",
            "/a",
            "a/",
            "a/../b",
            ".a",
            "a b",
            "a\\b",
            "a\n",
            "ä",
            "a\0",
            "c:a",
        ),
        *("x" * 201, "a/b/c/d", "manifest.json", "MANIFEST.JSON", "manifest.json/x"),
    ],
)
def test_refused_names(name: str) -> None:
    with pytest.raises(ManifestError):
        check_name(name)


def test_folders_that_differ_by_case_are_refused() -> None:
    check_names(["a/x", "a/y", "b/x"])
    with pytest.raises(ManifestError, match="file names 'a' and 'A' differ by case only"):
        check_names(["a/x", "A/y"])


def test_importing_the_format_brings_no_numpy() -> None:
    code = "import sys, agent.bundle, agent.bundle.folder; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
