"""``fleet-agent selftest``: every installed model in a throw-away process, from what is on the disk."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from agent.adapters.journal import SqliteJournal
from agent.commands import app
from agent.state_dir import StatePaths
from agent.update import Installed, ModelRecord, Slots
from tests.support.onnx_models import BundleMaker, scale_bundle, scale_model

CONFIG = """
[device]
id = "cam-1"
class = "camera"
state_dir = "state"
[fleet]
name = "lab"
root = "root.json"
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(CONFIG, encoding="utf-8")
    (tmp_path / "state").mkdir()
    return path


def install(config, made):
    paths = StatePaths(config.parent / "state")
    paths.slots.mkdir(exist_ok=True)
    shutil.copytree(made.path, paths.slots / made.sha256)
    journal = SqliteJournal(paths.journal)
    manifest = made.manifest
    active = Installed(made.sha256, manifest.version, manifest.path, "r1")
    journal.save(ModelRecord(manifest.model, Slots(active)))
    journal.close()
    return paths.slots / made.sha256


def selftest(config, *more):
    return CliRunner().invoke(app, ["selftest", "--config", str(config), *more])


def test_without_a_model_there_is_nothing_to_test(config):
    result = selftest(config)
    assert (result.exit_code, result.output) == (0, "no model is installed\n")


def test_models_that_answer_as_built_pass_and_others_do_not(config, tmp_path):
    install(config, scale_bundle(tmp_path / "good"))
    x = np.ones((1, 4), np.float32)
    wrong = BundleMaker(
        models={"model.onnx": scale_model(3.0)}, model="wrong", golden=[({"x": x}, {"y": x * 2})]
    )
    install(config, wrong.write(tmp_path / "wrong"))
    rotten = install(config, scale_bundle(tmp_path / "rotten", model="rotten"))
    (rotten / "model.onnx").write_bytes(b"x" * (rotten / "model.onnx").stat().st_size)

    result = selftest(config, "--json")
    assert result.exit_code == 3
    said = json.loads(result.output)
    assert said["ok"] is False
    rows = {row["model"]: row for row in said["models"]}
    assert (rows["scale"]["ok"], rows["scale"]["measures"]["golden_cases"]) == (True, 1.0)
    assert rows["scale"]["text"] == "1 golden cases answered as built"
    assert (rows["wrong"]["ok"], rows["wrong"]["reason_code"]) == (False, "trial_golden_failed")
    assert (rows["rotten"]["ok"], rows["rotten"]["reason_code"]) == (False, "slot_damaged")


def test_it_says_what_it_did(config, tmp_path):
    install(config, scale_bundle(tmp_path / "good"))
    result = selftest(config)
    assert result.exit_code == 0
    assert result.output == "OK    scale 1.0.0: 1 golden cases answered as built\n"
