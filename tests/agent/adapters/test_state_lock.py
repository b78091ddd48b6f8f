"""One agent a state folder, and a dead agent holds nothing."""

import os
import signal
import subprocess
import sys

import pytest

from agent.adapters.state_lock import StateLock
from agent.errors import DeviceError


def test_the_second_agent_is_told_who_is_first(tmp_path):
    with StateLock(tmp_path / "state"):
        assert StateLock(tmp_path / "state").is_held()
        with pytest.raises(DeviceError, match=rf"process {os.getpid()}\) runs in"):
            StateLock(tmp_path / "state").__enter__()
    assert not StateLock(tmp_path / "state").is_held()
    with StateLock(tmp_path / "state"):
        pass


def test_a_killed_agent_leaves_the_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from agent.adapters.state_lock import StateLock\n"
        f"with StateLock(Path({str(tmp_path)!r})):\n print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    lock = StateLock(tmp_path)
    assert lock.is_held()
    assert lock.owner_pid() == holder.pid
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    assert not lock.is_held()
    with lock:
        assert lock.owner_pid() == os.getpid()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeviceError, match="cannot use the state folder"):
        StateLock(tmp_path / "file" / "state").__enter__()
