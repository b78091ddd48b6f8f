"""onnxruntime's maker learns nothing: no device id, no cache of events, in any process that loads it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.runtime.child import child_environment

# These make onnxruntime silent by themselves, so a test that keeps them could not fail.
QUIETERS = ("CI", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "TF_BUILD")


@pytest.mark.parametrize(
    "code",
    ["import agent.runtime.pipeline", "import agent.serving.watchdog"],
    ids=["pipeline", "server"],
)
def test_loading_onnxruntime_leaves_nothing_in_the_home_folder(code: str, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in QUIETERS}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    env.pop("XDG_CACHE_HOME", None)
    subprocess.run([sys.executable, "-P", "-c", code], env=env, check=True)
    assert not list(tmp_path.rglob("*"))


def test_children_are_told_so_whatever_they_import_first() -> None:
    assert child_environment()["ORT_DISABLE_TELEMETRY"] == "1"
