"""docs/rollouts.md: its files are rollouts, and no key is missing from it."""

import re
from pathlib import Path

import pytest

from fleet.rollout.changes import OPERATOR_EVENTS
from fleet.rollout.rollout_toml import spec_from_toml
from fleet.rollout.spec import Guards, StageKind, Strategy
from fleet.rollout.states import Event

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "rollouts.md").read_text(encoding="utf-8")
FILES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
IN_STAGE = (
    "percent",
    "devices",
    "bake",
    "kind",
    "traffic",
    "approval",
    "devices_per_minute",
    "ramp",
)
IN_FILE = (
    "bundle", "strategy", "install_deadline", "hold_back", "exclude", "open_hours", "retries",
    "routing_key", "older", "url", "timeout", "every", "plain_http",
)  # fmt: skip


@pytest.mark.parametrize("text", FILES, ids=lambda text: text.splitlines()[1])
def test_each_file_is_a_rollout(text: str) -> None:
    assert str(spec_from_toml(text).strategy) in text


def test_every_key_is_shown() -> None:
    keys = (*IN_FILE, *IN_STAGE, *Guards.__dataclass_fields__)
    shown = {key for key in keys if re.search(rf"^{key} = ", "\n".join(FILES), re.MULTILINE)}
    assert set(keys) - shown == {"metrics"}
    assert "[guards.metrics]" in TEXT


def test_every_word_is_explained() -> None:
    for word in (*Strategy, *StageKind):
        assert f"`{word}`" in TEXT or f'"{word}"' in TEXT, word
    said = {Event.STOP_STRATUM: "stop --stratum", Event.ADVANCE: "advance --reason"}
    for event in OPERATOR_EVENTS:
        assert f"`{said.get(event, event)}" in TEXT, event
