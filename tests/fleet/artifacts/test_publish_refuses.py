"""What no device may run is not published: the folder is looked through before anything is sent."""

from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from agent.bundle import ManifestError
from agent.runtime.errors import ForbiddenModelError, ModelLoadError
from fleet.artifacts.publish import PublishRequest, publish_folder
from tests.support.bombs import sparse_claim
from tests.support.onnx_models import BundleMaker, floats, model_bytes, scale_model


class Untouched:
    """A fleet manager that must not be asked anything."""

    def post_json(self, path: str, body: object = None) -> Any:
        raise AssertionError(path)

    def get_bytes(self, path: str) -> bytes:
        raise AssertionError(path)

    def put_bytes(self, path: str, data: bytes) -> None:
        raise AssertionError(path)


def publish(folder: Path, models: dict[str, bytes]) -> None:
    made = BundleMaker(models=models).write(folder)
    publish_folder(Untouched(), PublishRequest(made.path, Path("unused"), 0.0))


COMPILED = model_bytes(
    [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")], [floats("x")], []
)


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (COMPILED, ForbiddenModelError, "uses the operator EPContext"),
        (b"\x80\x04" + bytes(9), ForbiddenModelError, "is a Python pickle"),
        (sparse_claim(), ForbiddenModelError, "a sparse tensor of"),
        (b"garbage", ModelLoadError, "is not an ONNX model"),
    ],
)
def test_a_forbidden_model(tmp_path: Path, model: bytes, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        publish(tmp_path / "b", {"model.onnx": model})


@pytest.mark.parametrize(
    "name", ["weights.pt", "x.npz", "x.pkl", "ops.so", "model.ort", "run.py", "all.zip"]
)
def test_a_file_of_a_kind_that_nobody_reads(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match=f"file '{name}' is no model and no tensor"):
        publish(tmp_path / "b", {"model.onnx": scale_model(), name: b"x"})
