"""A model that has taken over its process: each thing it may try, in the confinement it is really in."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent.runtime.child import child_environment
from agent.runtime.landlock import landlock_abi
from tests.support.attacker import attacks, trial_attacks

FULL_LANDLOCK_ABI = 6
DEADLINE_S = 300
ROOT = Path(__file__).resolve().parents[2]
CONFINED = {"PermissionError", "MemoryError"}

pytestmark = pytest.mark.skipif(
    landlock_abi() < FULL_LANDLOCK_ABI, reason="this kernel has no Landlock of ABI 6 (Linux 6.12)"
)


def attacked(role: str, folder: Path) -> dict[str, dict[str, object]]:
    """What came of every attack of a child confined as ``role``; none touched ``folder``."""
    for name, content in (
        ("bundle/model.onnx", "model"),
        ("secret/identity.key.pem", "key"),
        ("secret/trust.db", "trust"),
        ("form/x", "x"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, "ascii")
    (folder / "bundle" / "link").symlink_to(folder / "secret" / "trust.db")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.attacker", role, str(folder), port],
            capture_output=True,
            cwd=ROOT,
            env={**child_environment(), "PYTHONPATH": str(ROOT)},
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    assert (folder / "secret" / "identity.key.pem").read_text("ascii") == "key"
    assert (folder / "secret" / "trust.db").read_text("ascii") == "trust"
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "form", "secret"]
    answer: dict[str, dict[str, object]] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("role", ["trial", "form", "server"])
def test_model_that_has_taken_over_its_process(role: str, tmp_path: Path) -> None:
    answer = attacked(role, tmp_path)
    expected = set(attacks(tmp_path, 0)) | (set() if role == "server" else set(trial_attacks()))
    assert set(answer["attacks"]) == expected
    newer = answer["attacks"].pop("use a call newer than the filter")
    assert newer == "OSError"  # ENOSYS: as on a kernel that does not have it
    through = {name: how for name, how in answer["attacks"].items() if how not in CONFINED}
    assert not through
    assert {name: how for name, how in answer["needs"].items() if how != "done"} == {}
    assert answer["confined"]["calls_confined"] == answer["confined"]["privileges_dropped"] == 1.0
    assert answer["confined"]["files_confined"] >= FULL_LANDLOCK_ABI


def test_the_same_attacks_come_through_without_confinement(tmp_path: Path) -> None:
    """So that the test above can fail: the attacks that harm nobody, in a child that gave up nothing."""
    answer = attacked("free", tmp_path)
    assert answer["attacks"]
    assert set(answer["attacks"].values()) == {"done"}
