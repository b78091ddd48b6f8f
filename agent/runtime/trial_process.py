"""Runs the trial of one bundle in a throw-away child process and turns whatever happens into a
report.

Rules kept here:

- A bundle that crashes, hangs, floods its output or lies about its result is a *refused* report,
  never an exception.
- The child is the leader of its own process group; when time is up or the caller gives up, the
  whole group is killed.
- It gives way to everything else for the first part of its time, and only for that: a busy device must not make a good
  bundle late.
- What the child says is bounded and parsed strictly. No numpy, no onnxruntime here.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import DeviceError
from agent.runtime.child import child_command, child_environment, describe_exit
from agent.runtime.giving_way import give_way, take_turns
from agent.runtime.providers import DEFAULT_PROVIDERS
from agent.runtime.verdict import (
    EXIT_OK,
    EXIT_REFUSED,
    TrialReason,
    TrialReport,
    clean_text,
    parse_line,
)

__all__ = ["TrialLimits", "TrialReport", "run_form_trial", "run_trial", "run_trial_blocking"]


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """Bounds of one trial."""

    wall_s: float = 180.0
    """From start to result; the trial runs at the lowest priority, so a busy device needs
    patience."""
    gives_way_s: float = 2.0
    """From the start on; afterwards its session shares the processors evenly, at the lowest priority within it."""
    cpu_s: int = 120
    """Processor time of the whole child."""
    default_memory_bytes: int = 1 << 30
    """What a model may add to an empty runtime when its bundle does not say
    (``requires.memory_bytes`` = 0)."""
    max_output_bytes: int = 64 * 1024
    """Of the child's output, each stream; the rest is read and thrown away."""
    kill_wait_s: float = 10.0
    """For the kernel to take a killed child away."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a child ended and what it said, bounded."""

    returncode: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool


async def run_trial(
    folder: str | Path,
    limits: TrialLimits | None = None,
    *,
    providers: Sequence[str] = DEFAULT_PROVIDERS,
) -> TrialReport:
    """Load, warm up and check the bundle in ``folder`` apart from everything else.

    Raises:
        DeviceError: the child cannot be started at all.
    """
    limits = limits or TrialLimits()
    command = child_command(
        "agent.runtime.trial",
        "--cpu-s", str(limits.cpu_s),
        "--default-memory-bytes", str(limits.default_memory_bytes),
        "--providers", ",".join(providers),
        str(folder),
    )  # fmt: skip
    ended = await _run_child(command, limits, f"the trial of {folder}")
    if ended.timed_out:
        return TrialReport(
            False,
            TrialReason.TIMEOUT,
            f"the trial did not end within {limits.wall_s:g} s and was killed; the model may never finish a run",
        )
    return _judge(ended, limits)


async def run_form_trial(
    folder: str | Path,
    target: str | Path,
    limits: TrialLimits | None = None,
    *,
    providers: Sequence[str] = DEFAULT_PROVIDERS,
) -> str:
    """Make and measure the saved form of a bundle that passed its trial, in the empty folder
    ``target``. Returns why there is none, empty when ``form.json`` is there.

    Raises:
        DeviceError: the child cannot be started at all.
    """
    limits = limits or TrialLimits()
    command = child_command(
        "agent.runtime.form_trial",
        "--cpu-s", str(limits.cpu_s),
        "--default-memory-bytes", str(limits.default_memory_bytes),
        "--providers", ",".join(providers),
        str(folder),
        str(target),
    )  # fmt: skip
    ended = await _run_child(command, limits, f"the measuring of {folder}")
    if ended.timed_out:
        return f"it was not made within {limits.wall_s:g} s"
    if ended.returncode == EXIT_OK:
        return ""
    how = "no exit status" if ended.returncode is None else describe_exit(ended.returncode)
    return f"{how}{_last_words(ended.stderr)}"


async def _run_child(command: Sequence[str], limits: TrialLimits, what: str) -> _Ended:
    """Run a child to its end or to the end of its time; its whole group is gone afterwards.

    Raises:
        DeviceError: it cannot be started at all.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise DeviceError(
            f"{what} cannot be started: {error}. Check free memory and the limit on processes."
        ) from error
    timed_out = False
    output = asyncio.gather(
        _read_bounded(process.stdout, limits.max_output_bytes),
        _read_bounded(process.stderr, limits.max_output_bytes),
    )
    try:
        # Waits for the process and not for the end of its output: a grandchild could hold that
        # open.
        async with asyncio.timeout(limits.wall_s):
            await _wait_giving_way(process, limits.gives_way_s)
    except TimeoutError:
        timed_out = True
    except asyncio.CancelledError:
        output.cancel()
        raise
    finally:
        await _kill_group(process, limits.kill_wait_s)
    try:
        async with asyncio.timeout(limits.kill_wait_s):
            stdout, stderr = await output
    except (
        TimeoutError
    ):  # something outside the group still holds the pipe; its words are not needed
        stdout, stderr = b"", b""
    return _Ended(process.returncode, stdout, stderr, timed_out)


async def _wait_giving_way(process: asyncio.subprocess.Process, gives_way_s: float) -> None:
    """Wait for the end of a child that leads a session, which gives way at first."""
    if give_way(process.pid):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(gives_way_s):
                await process.wait()
                return
        take_turns(process.pid)
    await process.wait()


def run_trial_blocking(folder: str | Path, limits: TrialLimits | None = None) -> TrialReport:
    """``run_trial`` for callers without an event loop.

    Raises:
        DeviceError: the child cannot be started at all.
    """
    return asyncio.run(run_trial(folder, limits))


async def _read_bounded(stream: asyncio.StreamReader | None, limit: int) -> bytes:
    """Read to the end, keep the first ``limit`` bytes."""
    assert stream is not None
    kept = bytearray()
    while chunk := await stream.read(16 * 1024):
        kept += chunk[: max(0, limit - len(kept))]
    return bytes(kept)


async def _kill_group(process: asyncio.subprocess.Process, wait_s: float) -> None:
    """Kill the child and whatever it started; harmless when it has ended."""
    with contextlib.suppress(ProcessLookupError):  # ended and nothing is left of the group
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):  # stuck in the kernel: it is killed and cannot run on
        async with asyncio.timeout(wait_s):
            await process.wait()


def _judge(ended: _Ended, limits: TrialLimits) -> TrialReport:
    """The report of a child that ended by itself."""
    returncode = ended.returncode
    if returncode in (EXIT_OK, EXIT_REFUSED):
        lines = [line for line in ended.stdout.splitlines() if line.strip()]
        report = parse_line(lines[-1]) if lines else None
        if report is not None and report.ok is (returncode == EXIT_OK):
            return report
    if returncode == -signal.SIGXCPU:
        reason = f"the trial used more than {limits.cpu_s} s of processor time; the model may never finish a run"
        return TrialReport(False, TrialReason.TIMEOUT, reason)
    how = describe_exit(returncode) if returncode is not None else "no exit status"
    hint = " (the kernel may have run out of memory)" if returncode == -signal.SIGKILL else ""
    said = _last_words(ended.stderr)
    return TrialReport(
        False, TrialReason.CRASHED, f"the trial ended without a result: {how}{hint}{said}"
    )


def _last_words(stderr: bytes) -> str:
    last = stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
    return f"; it last said: {clean_text(last, 200)}" if last else ""
