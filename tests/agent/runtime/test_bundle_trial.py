"""The trial: every kind of bad bundle is a refused report from a child that is gone, never an exception."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from agent.adapters.trial import ProcessTrial
from agent.bundle import Objectives, Requirements
from agent.errors import DeviceError
from agent.runtime import TrialLimits, run_trial, run_trial_blocking, trial_process
from agent.runtime.verdict import TrialReason, TrialReport, clean_text, parse_line
from tests.support.onnx_models import (
    BundleMaker,
    endless_model,
    hungry_model,
    log_model,
    scale_bundle,
)

ONE = np.ones((1, 4), np.float32)


async def test_a_good_bundle_passes_with_measures(tmp_path: Path) -> None:
    made = scale_bundle(tmp_path / "b")
    result = await ProcessTrial().run(str(made.path), made.manifest)
    assert (result.ok, result.reason_code, result.reason) == (True, "", "")
    assert result.measures["golden_cases"] == 1
    assert result.measures["load_ms"] > 0
    assert result.measures["latency_ms"] >= result.measures["best_latency_ms"] > 0
    assert result.measures["peak_rss_bytes"] > 10_000_000


def test_without_an_event_loop(tmp_path: Path) -> None:
    assert run_trial_blocking(scale_bundle(tmp_path / "b").path).ok


@pytest.mark.parametrize(
    ("parts", "code", "said"),
    [
        ({"golden": [({"x": ONE}, {"y": ONE * 2.5})]}, "trial_golden_failed", "case-0"),
        (
            {"models": {"model.onnx": log_model()}, "golden": [({"x": -ONE}, {"y": ONE})]},
            "trial_non_finite",
            "case-0",
        ),
        ({"models": {"model.onnx": log_model()}}, "trial_non_finite", "'y': NaN or infinity"),
        ({"models": {"model.onnx": b"garbage"}}, "trial_load_failed", "model.onnx"),
        (
            {
                "models": {"model.onnx": hungry_model(900 << 20)},
                "requirements": Requirements(memory_bytes=32 << 20),
            },
            "trial_memory",
            "32.0 MiB",
        ),
        (
            {
                "models": {"model.onnx": hungry_model(150 << 20)},
                "requirements": Requirements(memory_bytes=32 << 20),
            },
            "trial_memory",
            "32.0 MiB",
        ),
        ({"objectives": Objectives(latency_ms=0.001)}, "trial_latency", "objective is 0.001 ms"),
    ],
)
async def test_a_bad_bundle_is_refused_with_its_reason(
    tmp_path: Path, parts: dict[str, Any], code: str, said: str
) -> None:
    made = BundleMaker(**parts).write(tmp_path / "b")
    result = await ProcessTrial().run(str(made.path), made.manifest)
    assert (result.ok, result.reason_code) == (False, code), result.reason
    assert said in result.reason
    assert result.reason.startswith("scale 1.0.0: ")


async def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    report = await run_trial(tmp_path / "nothing")
    assert (report.ok, report.reason_code) == (False, TrialReason.LOAD_FAILED)


async def test_a_model_that_never_ends_is_killed_by_the_clock(tmp_path: Path) -> None:
    made = BundleMaker(models={"model.onnx": endless_model()}).write(tmp_path / "b")
    report = await run_trial(made.path, TrialLimits(wall_s=1.5))
    assert report.reason_code == TrialReason.TIMEOUT
    assert "within 1.5 s" in report.reason
    assert trial_children() == []


async def test_a_model_that_never_ends_is_killed_by_the_kernel(tmp_path: Path) -> None:
    made = BundleMaker(models={"model.onnx": endless_model()}).write(tmp_path / "b")
    report = await run_trial(made.path, TrialLimits(cpu_s=1))
    assert report.reason_code == TrialReason.TIMEOUT
    assert "1 s of processor time" in report.reason


def trial_children() -> list[psutil.Process]:
    """Trials of this process that are running a bundle (the module's name is in the command)."""
    children = psutil.Process().children()
    return [child for child in children if "agent.runtime.trial" in child.cmdline()]


async def running_trial(folder: Path) -> tuple["asyncio.Task[TrialReport]", psutil.Process]:
    made = BundleMaker(models={"model.onnx": endless_model()}).write(folder)
    task = asyncio.create_task(run_trial(made.path))
    while not (found := trial_children()):
        await asyncio.sleep(0)
    return task, found[0]


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGSEGV, "killed by SIGSEGV"), (signal.SIGKILL, "out of memory")]
)
async def test_a_crash_is_a_refusal(tmp_path: Path, number: signal.Signals, said: str) -> None:
    task, child = await running_trial(tmp_path / "b")
    child.send_signal(number)
    report = await task
    assert (report.ok, report.reason_code) == (False, TrialReason.CRASHED)
    assert said in report.reason


async def test_giving_up_kills_the_child(tmp_path: Path) -> None:
    task, child = await running_trial(tmp_path / "b")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not child.is_running()


async def script_trial(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> TrialReport:
    """A trial by a child that does what it likes, as one taken over by its model would."""
    monkeypatch.setattr(trial_process, "child_command", lambda *_: ["/bin/sh", "-c", script])
    return await run_trial(folder, TrialLimits(wall_s=10, max_output_bytes=4096))


OK_LINE = TrialReport(True).to_line()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", "exit code 0"),
        ("echo nonsense; exit 0", "exit code 0"),
        (f"echo '{OK_LINE}'; exit 3", "exit code 3"),
        (f"echo '{OK_LINE}'; exit 7", "exit code 7"),
        (f"echo '{OK_LINE}'; kill -ABRT $$", "killed by SIGABRT"),
        ("echo oh no >&2; exit 1", "it last said: oh no"),
        (f"yes | head -c 1000000; echo '{OK_LINE}'; exit 0", "exit code 0"),
    ],
)
async def test_a_child_that_talks_nonsense_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    report = await script_trial(monkeypatch, tmp_path, script)
    assert (report.ok, report.reason_code) == (False, TrialReason.CRASHED)
    assert said in report.reason


async def test_a_child_that_cannot_be_started_is_the_devices_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trial_process, "child_command", lambda *_: [str(tmp_path / "no-python")])
    with pytest.raises(DeviceError, match="cannot be started"):
        await run_trial(tmp_path)


async def test_the_child_does_not_get_the_parents_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    report = await script_trial(
        monkeypatch, tmp_path, "env >&2; echo got:$SECRET_TOKEN: >&2; exit 1"
    )
    assert "got::" in report.reason


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b"{}", b'{"ok": 1}', b"[" * 5000,
        b'{"ok": true, "reason_code": "trial_crashed", "reason": "", "measures": {}}',
        b'{"ok": false, "reason_code": "", "reason": "", "measures": {}}',
        b'{"ok": false, "reason_code": "because", "reason": "", "measures": {}}',
        b'{"ok": true, "reason_code": "", "reason": "", "measures": {"a": NaN}}',
        b'{"ok": true, "reason_code": "", "reason": "", "measures": {"a": 1e999}}',
        b'{"ok": true, "reason_code": "", "reason": "", "measures": {"a": "1"}}',
        b'{"ok": true, "reason_code": "", "reason": "", "measures": {"a": true}}',
    ],
)  # fmt: skip
def test_only_a_whole_report_is_a_report(line: bytes) -> None:
    assert parse_line(line) is None


def test_a_report_survives_its_line() -> None:
    report = TrialReport(False, TrialReason.MEMORY, "too  much\nmemory", {"load_ms": 1.5})
    parsed = parse_line(report.to_line().encode())
    assert parsed == replace(report, reason="too much memory")
    assert len(clean_text("x" * 1000)) == 400


def test_the_trial_has_no_network_and_cannot_write(tmp_path: Path) -> None:
    """In a process of its own: what is taken away stays away."""
    script = (
        "import socket\n"
        "from agent.runtime.sandbox import leave_network, lock_down\n"
        "lock_down(); isolated = leave_network()\n"
        "try: socket.create_connection(('127.0.0.1', PORT), 2); print('connected')\n"
        "except OSError: print('isolated' if isolated else 'refused')\n"
        f"try:\n with open({str(tmp_path / 'f')!r}, 'w') as f: f.write('x')\n"
        "except OSError: print('no writing')\n"
    )
    import socket
    import subprocess
    import sys

    with socket.create_server(("127.0.0.1", 0)) as server:
        done = subprocess.run(
            [sys.executable, "-c", script.replace("PORT", str(server.getsockname()[1]))],
            capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False, timeout=90,
        )  # fmt: skip
    lines = done.stdout.split("\n")
    if lines[0] == "connected" and os.geteuid() != 0:
        pytest.skip("this kernel allows no unprivileged network namespaces")
    assert lines[0] == "isolated", done.stderr
    assert "no writing" in lines
