"""Runs a child with every file operation in one folder written down, or with its N-th one failing.

The recorder is a small C library that is preloaded; it is compiled once a test session. It sees what Python does and
what SQLite does alike, because both ask libc.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Op", "begin", "failing", "notes", "read_log", "run_child"]

ROOT = Path(__file__).resolve().parents[3]
SOURCE = Path(__file__).with_name("recorder.c")


@dataclass(frozen=True, slots=True)
class Op:
    """One line of the log: what was done, and to what."""

    what: str
    parts: tuple[str, ...]


@functools.cache
def library() -> Path:
    """The compiled recorder. Skips the test where there is no C compiler; in CI that is a failure."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        missing = "needs a C compiler on Linux (Debian: gcc, libc6-dev) to record file operations"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    target = Path(tempfile.mkdtemp(prefix="muster-recorder-")) / "recorder.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wno-format-truncation"]
    subprocess.run([compiler, *flags, "-o", str(target), str(SOURCE)], check=True)
    return target


def run_child(*arguments: str) -> str:
    """``tests.support.crash.child`` with the recorder in it; what it printed."""
    environment = {**os.environ, "LD_PRELOAD": str(library()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.crash.child", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def read_log(path: Path) -> list[Op]:
    """What a child did, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Op(words[0], tuple(words[1:])) for words in (line.split(" ") for line in lines)]


# --- within the child -----------------------------------------------------------------------------


def _recorder() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def begin(folder: Path, log: Path | None) -> None:
    """From now on operations in ``folder`` are recorded."""
    _recorder().recorder_begin(str(folder).encode(), None if log is None else str(log).encode())


def notes(text: str) -> None:
    """Put a line of the child's own into the log."""
    _recorder().recorder_note(text.encode())


def failing(at: int, error: int, *, stays: bool) -> None:
    """Let the ``at``-th operation from now on fail (0: none), and all that follow if it ``stays``."""
    _recorder().recorder_fail(at, error, int(stays))


def calls() -> int:
    """Operations since ``failing`` was called."""
    return int(_recorder().recorder_calls())
