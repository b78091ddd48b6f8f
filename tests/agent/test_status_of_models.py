"""``fleet-agent status``: how each model was brought in, what it takes, and whether its saved form is used."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.adapters.journal import SqliteJournal
from agent.adapters.measured import MeasuredStore
from agent.commands import app
from agent.runtime.saved_form import FormMeasures, Maker, SavedForm, write_form
from agent.state_dir import StatePaths
from agent.update import Deployment, Installed, ModelRecord, Phase, Slots
from agent.update.memory_policy import MemoryLimits, MemorySnapshot, plan_swap

DIGEST = "ab" * 32
MIB = 1 << 20
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
def config(tmp_path: Path) -> Path:
    """A device that has one model installed."""
    path = tmp_path / "agent.toml"
    path.write_text(CONFIG, encoding="utf-8")
    (tmp_path / "state").mkdir()
    journal = SqliteJournal(StatePaths(tmp_path / "state").journal)
    active = Installed(DIGEST, "1.0", "bundles/camera/m-1.0", "r1")
    journal.save(ModelRecord("m", Slots(active=active)))
    journal.close()
    return path


def shown(config: Path, *more: str) -> str:
    result = CliRunner().invoke(app, ["status", "--config", str(config), *more])
    assert result.exit_code == 0, result.output
    return result.output


def test_what_was_measured_and_chosen_is_said(config: Path) -> None:
    store = MeasuredStore(StatePaths(config.parent / "state").measured)
    store.keep_trial(DIGEST, {"model_rss_bytes": 120.0 * MIB})
    snapshot = MemorySnapshot(150 * MIB, 120 * MIB, 0, 100 * MIB, old_loaded=True)
    store.keep_swap(DIGEST, plan_swap(snapshot, MemoryLimits()).to_json())
    form = store.begin_form(DIGEST, 0)
    assert form is not None
    measures = FormMeasures(1.0, 1.0)
    write_form(form, SavedForm(Maker(DIGEST, "1", "p", ("p",)), True, measures, measures))
    store.end_form(DIGEST, keep=True)
    text = shown(config)
    assert (
        "m: loaded after the one before was unloaded: 120.0 MiB (measured in the trial) do not fit beside what runs: "
        "150.0 MiB are available, 64.0 MiB of them in reserve; the old version goes first and gives back 100.0 MiB"
    ) in text
    assert "m: took 120.0 MiB at most, loaded from its saved form" in text
    (model,) = json.loads(shown(config, "--json"))["models"]
    assert model["swap"]["mode"] == "unload_first"
    assert (model["memory_bytes"], model["saved_form"]) == (120 * MIB, True)


def test_what_is_not_known_is_not_said(config: Path) -> None:
    text = shown(config)
    assert "at most" not in text
    (model,) = json.loads(shown(config, "--json"))["models"]
    assert (model["swap"], model["memory_bytes"], model["saved_form"]) == ({}, None, False)


@pytest.mark.parametrize(
    ("mode", "role", "what"),
    [
        ("shadow", "shadow", "gets copies of 12.5 % of requests"),
        ("ab", "arm", "answers 12.5 % of requests"),
        ("blue-green", "standby", "waits"),
    ],
)
def test_what_is_held_beside_is_said(config: Path, mode: str, role: str, what: str) -> None:
    journal = SqliteJournal(StatePaths(config.parent / "state").journal)
    record = journal.load().models["m"]
    going = Deployment(
        "d", "r2", "m", "bundles/camera/m-2.0", "cd" * 32, 9, 1.0, Phase.BESIDE, version="2.0",
        mode=mode, beside=True, traffic_bp=1250,
    )  # fmt: skip
    journal.save(record.with_deployment(going))
    journal.close()
    assert f"m: version 2.0 is held beside as {role} and {what}, rollout r2\n" in shown(config)
    (model,) = json.loads(shown(config, "--json"))["models"]
    assert model["beside"] == {
        "version": "2.0",
        "manifest_sha256": "cd" * 32,
        "rollout_id": "r2",
        "role": role,
        "traffic_bp": 1250,
    }
