"""A trial gives way to everything else, at first."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.runtime import TrialLimits, giving_way, run_trial, trial_process
from tests.support.onnx_models import BundleMaker, endless_model

GROUPS = Path("/proc/self/autogroup")


@pytest.fixture
def leader() -> Iterator[int]:
    """A process that leads a session of its own."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.skipif(not GROUPS.exists(), reason="this kernel does not group processes by session")
def test_a_session_gives_way_and_takes_turns_again(leader: int) -> None:
    place, ours = Path(f"/proc/{leader}/autogroup"), GROUPS.read_text()
    said = []
    for change in (giving_way.give_way, giving_way.take_turns):
        while not change(leader):  # the kernel allows ten changes a second on the whole system
            pass
        said.append(place.read_text().split()[-1])
    assert said == ["19", "0"]
    assert GROUPS.read_text() == ours


def test_without_groups_nothing_happens(tmp_path: Path) -> None:
    assert not giving_way.give_way(1, tmp_path)
    assert not giving_way.take_turns(1, tmp_path)


@pytest.mark.parametrize(
    ("gives_way_s", "said"), [(0.0, ["gives way", "takes turns"]), (60.0, ["gives way"])]
)
async def test_a_trial_gives_way_for_a_part_of_its_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gives_way_s: float, said: list[str]
) -> None:
    """Where the kernel knows no groups, too: what is asked of it is what counts."""
    asked: list[str] = []

    def note(word: str) -> bool:
        asked.append(word)
        return True

    monkeypatch.setattr(trial_process, "give_way", lambda _: note("gives way"))
    monkeypatch.setattr(trial_process, "take_turns", lambda _: note("takes turns"))
    made = BundleMaker(models={"model.onnx": endless_model()}).write(tmp_path / "b")
    limits = TrialLimits(wall_s=0.3, gives_way_s=gives_way_s)
    report = await run_trial(made.path, limits)
    assert (report.reason_code, asked) == ("trial_timeout", said)


async def test_a_child_that_ends_in_time_never_takes_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turns: list[int] = []
    monkeypatch.setattr(trial_process, "give_way", lambda _: True)
    monkeypatch.setattr(trial_process, "take_turns", turns.append)
    monkeypatch.setattr(trial_process, "child_command", lambda *_: ["/bin/sh", "-c", "exit 1"])
    async with asyncio.timeout(60):
        await run_trial(tmp_path)
    assert turns == []
