"""How this package starts its own Python modules as child processes. Light: the supervisor imports
it.

Rules kept here:

- A child gets a short list of environment variables, never the parent's whole environment (it may
  hold secrets, and a trial runs a hostile model).
- onnxruntime reports nothing to anybody (see ``agent.runtime.engine``), however it is loaded.
- A child finds the same ``agent`` package as its parent, whether installed or run from a source
  folder.
"""

import os
import signal
import site
import sys
from pathlib import Path
from typing import Final

__all__ = ["child_command", "child_environment", "describe_exit"]

PASSED_ON: Final = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "PYTHONHOME",
)
LARGE_BLOCK_BYTES: Final = 4 << 20
"""Blocks of memory from here on are the system's again as soon as they are freed."""


def child_command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` with this interpreter; the current folder is not on its
    path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """The environment of a child: what finds programs and libraries, and one thread for numerical
    libraries."""
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    env.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MALLOC_ARENA_MAX="2", PYTHONUTF8="1")
    env["ORT_DISABLE_TELEMETRY"] = "1"
    # glibc raises this bound by itself after the first large block is freed. Weights of the next model then come
    # from the heap, which loads at twice the peak of the first time and gives back nothing until it is trimmed.
    env["MALLOC_MMAP_THRESHOLD_"] = str(LARGE_BLOCK_BYTES)
    # With it the bound for trimming stays low too: each request of some hundred kB would grow and shrink the heap.
    env["MALLOC_TRIM_THRESHOLD_"] = str(2 * LARGE_BLOCK_BYTES)
    root = str(Path(__file__).resolve().parents[2])
    if root not in site.getsitepackages():
        env["PYTHONPATH"] = root
    return env


def describe_exit(returncode: int) -> str:
    """A return code in words: ``exit code 3`` or ``killed by SIGSEGV``."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-returncode}"
