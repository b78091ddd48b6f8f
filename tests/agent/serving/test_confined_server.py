"""A confined model server: it serves what lies in its folders, reads nothing else, and leaves no socket behind."""

from pathlib import Path

import pytest

from agent.adapters.model_server import OtherFronts, ProcessModelServer
from agent.errors import BundleError
from agent.runtime.landlock import landlock_abi
from tests.support.onnx_models import scale_bundle


@pytest.mark.skipif(landlock_abi() < 1, reason="this kernel has no Landlock")
async def test_it_loads_from_its_own_folders_alone(tmp_path: Path) -> None:
    slots, run = tmp_path / "slots", tmp_path / "run"
    run.mkdir()
    inside = scale_bundle(slots / "inside")
    outside = scale_bundle(tmp_path / "outside")
    fronts = OtherFronts(
        http="127.0.0.1:0", grpc_unix=str(run / "grpc"), http_unix=str(run / "http")
    )
    server = ProcessModelServer(
        "127.0.0.1:0", fronts=fronts, reads_only=(slots, tmp_path / "later")
    )
    async with server:
        assert server.confined["files_confined"] >= 1
        assert server.confined["calls_confined"] == 1
        assert {path.name for path in run.iterdir()} == {"grpc", "http"}
        await server.load(str(inside.path), inside.sha256)
        await server.activate("scale", inside.sha256)
        later = scale_bundle(tmp_path / "later" / "bundle", 3.0)
        await server.load(str(later.path), later.sha256)
        with pytest.raises(BundleError, match="Permission denied"):
            await server.load(str(outside.path), outside.sha256)
    assert not list(run.iterdir())
