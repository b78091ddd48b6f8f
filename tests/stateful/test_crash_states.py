"""Every durable store of the device after a power cut at any operation, and with a disk that fails at any operation.

Zero violations; and the same harness finds what was planted: a store that does not wait for the disk, a file that is
not synced, a folder that is not synced.
"""

import errno
import functools
import itertools
import tempfile
from pathlib import Path

import pytest

from agent.errors import AgentError
from tests.support.crash.plays import PLAYS, ViolatedError
from tests.support.crash.recorder import Op, read_log, run_child
from tests.support.crash.states import crash_states, without_syncs

FEWEST = 10
STORES = ("trust", "journal", "spool", "pieces", "slots", "file")


@functools.cache
def recorded(play: str) -> list[Op]:
    """What a store does, once a test session: starting a child costs more than the rest."""
    with tempfile.TemporaryDirectory(prefix="muster-crash-") as name:
        folder, log = Path(name) / "recorded", Path(name) / "log"
        folder.mkdir()
        run_child("record", play, str(folder), str(log))
        return read_log(log)


def violations(play: str, ops: list[Op], folder: Path, most: int | None = None) -> list[str]:
    """What is wrong after which power cut; stops after ``most``."""
    found = []
    for number, state in enumerate(crash_states(ops)):
        left = folder / f"left-{number}"
        state.write(left)
        try:
            PLAYS[play].check(left, state.said)
        except (ViolatedError, AgentError) as error:
            found.append(f"{state.where}, said {state.said}: {error}")
            if most is not None and len(found) >= most:
                return found
    assert number >= FEWEST, "too few states to say anything"
    return found


@pytest.mark.parametrize("play", STORES)
def test_no_power_cut_mixes_or_forgets(play: str, tmp_path: Path) -> None:
    ops = recorded(play)
    assert any(op.what == "S" for op in ops)
    assert violations(play, ops, tmp_path) == []


def test_a_store_that_does_not_wait_for_the_disk_is_caught(tmp_path: Path) -> None:
    ops = recorded("trust-unsynced")
    assert violations("trust", ops, tmp_path, most=1)


@pytest.mark.parametrize(
    ("play", "of_folders"),
    list(itertools.product(("trust", "pieces", "slots", "file"), (False, True))),
)
def test_a_sync_that_is_left_out_is_caught(play: str, of_folders: bool, tmp_path: Path) -> None:
    ops = without_syncs(recorded(play), of_folders=of_folders)
    assert violations(play, ops, tmp_path, most=1)


@pytest.mark.parametrize(("error", "how"), [(errno.ENOSPC, "stays"), (errno.EIO, "once")])
def test_a_disk_that_fails_at_any_operation_is_an_error_and_no_damage(
    error: int, how: str, tmp_path: Path
) -> None:
    folder = tmp_path / "failing"
    folder.mkdir()
    lines = run_child("fail", ",".join(STORES), str(folder), str(error), how).splitlines()
    assert [line for line in lines if "wrong" in line] == []
    assert [line.split()[0] for line in lines] == list(STORES)
    for line in lines:
        operations, told = map(int, line.split()[1:])
        assert operations > 5
        assert told > operations / 2, line
