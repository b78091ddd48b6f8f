"""The trial of one bundle: ``python -m agent.runtime.trial FOLDER``, run in a throw-away child
process.

Rules kept here:

- First the process takes away from itself what a hostile model could use, then it touches the
  bundle.
- It prints exactly one line of JSON, ``TrialReport.to_line``; exit code 0 when the bundle passed, 3
  when refused. A crash, a hang or a kill says nothing here: ``agent.runtime.trial_process`` turns
  it into a refusal.
- Order: load, golden cases on the whole pipeline (or a warm-up where there are none), speed,
  memory.
- Speed: the trial runs at the lowest priority beside other work, so the *fastest* of several runs
  decides whether the objective can be met at all; the median is reported.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.bundle import Manifest
from agent.bundle.folder import read_bundle
from agent.errors import BundleError
from agent.runtime.confine import confine_trial
from agent.runtime.errors import ForbiddenModelError, InferenceError
from agent.runtime.providers import DEFAULT_PROVIDERS
from agent.runtime.sandbox import (
    die_with_parent,
    leave_network,
    limit_cpu,
    limit_memory,
    lock_down,
    peak_rss_bytes,
    rss_bytes,
)
from agent.runtime.verdict import EXIT_OK, EXIT_REFUSED, TrialReason, TrialReport

__all__ = ["main"]

MIN_RUNS: Final = 5
MAX_RUNS: Final = 50
TIMED_S: Final = 0.5
"""Runs go on until this much time is spent, between MIN_RUNS and MAX_RUNS."""


class _Refused(Exception):
    """Carries a refusal up to where the report is made."""

    def __init__(self, code: TrialReason, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trial and print its line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="agent.runtime.trial", description="Try one bundle, apart from all else."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--cpu-s", type=int, default=120, help="processor time for everything, seconds"
    )
    parser.add_argument(
        "--memory-bytes", type=int, default=0, help="for the model (0: as the bundle requires)"
    )
    parser.add_argument(
        "--default-memory-bytes", type=int, default=1 << 30, help="when the bundle does not say"
    )
    parser.add_argument(
        "--providers", default=",".join(DEFAULT_PROVIDERS), help="execution providers, in order"
    )
    options = parser.parse_args(arguments)
    die_with_parent()
    lock_down()
    limit_cpu(options.cpu_s)
    providers = tuple(options.providers.split(","))
    confined = confine_trial(options.folder, providers, network_left=leave_network())
    measures = confined.measures()
    try:
        manifest, _ = read_bundle(options.folder)
        memory = (
            options.memory_bytes
            or manifest.requirements.memory_bytes
            or options.default_memory_bytes
        )
        _try_bundle(_Tried(options.folder, manifest, providers), memory, measures)
        report = TrialReport(True, measures=measures)
    except _Refused as refused:
        report = TrialReport(False, refused.code, str(refused), measures)
    except MemoryError:
        report = TrialReport(
            False, TrialReason.MEMORY, "the model took more memory than it may", measures
        )
    except BundleError as error:
        report = TrialReport(False, TrialReason.LOAD_FAILED, str(error), measures)
    sys.stdout.write(report.to_line() + "\n")
    sys.stdout.flush()
    return EXIT_OK if report.ok else EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class _Tried:
    """What is tried, and on which providers."""

    folder: Path
    manifest: Manifest
    providers: tuple[str, ...]


def _try_bundle(tried: _Tried, memory_bytes: int, measures: dict[str, float]) -> None:
    """Load and check the bundle in this process, filling ``measures`` on the way.

    Raises:
        _Refused: the bundle did not pass.
    """
    # After the network is gone: importing these starts threads.
    from agent.runtime.onnx_scan import scan_bundle
    from agent.runtime.pipeline import Pipeline
    from agent.runtime.session import EngineOptions

    folder, manifest = tried.folder, tried.manifest
    base_bytes = rss_bytes()
    limit_memory(memory_bytes)
    try:
        scan_bundle(folder, manifest)
        began_s = time.perf_counter()
        pipeline = Pipeline.load(folder, manifest, EngineOptions(tried.providers))
        measures["load_ms"] = round((time.perf_counter() - began_s) * 1000, 3)
        inputs = _run_cases(folder, manifest, pipeline)
        measures["golden_cases"] = float(len(manifest.golden))
        _time_runs(pipeline, inputs, measures)
    except BundleError as error:
        raise _refusal(error, manifest, memory_bytes) from error
    finally:
        measures["peak_rss_bytes"] = float(peak_rss_bytes())
        measures["model_rss_bytes"] = float(max(0, peak_rss_bytes() - base_bytes))
    _judge(measures, manifest, memory_bytes)


def _refusal(error: BundleError, manifest: Manifest, memory_bytes: int) -> _Refused:
    """The refusal for an error: out of memory has its own code, wherever it struck."""
    text = str(error)
    if "bad_alloc" in text or "allocate memory" in text:
        reason = f"more memory than the {_mb(memory_bytes)} allowed is needed: {text}"
        return _Refused(TrialReason.MEMORY, reason)
    if isinstance(error, ForbiddenModelError):
        return _Refused(TrialReason.FORBIDDEN, text)
    if isinstance(error, InferenceError) and manifest.golden:
        return _Refused(TrialReason.GOLDEN_FAILED, text)
    return _Refused(TrialReason.LOAD_FAILED, text)


def _judge(measures: Mapping[str, float], manifest: Manifest, memory_bytes: int) -> None:
    """Compare what was measured with what is allowed."""
    used_bytes, best_ms = measures["model_rss_bytes"], measures["best_latency_ms"]
    objective_ms = manifest.objectives.latency_ms
    if used_bytes > memory_bytes:
        raise _Refused(
            TrialReason.MEMORY,
            f"the model takes {_mb(used_bytes)} at its peak, allowed are {_mb(memory_bytes)}",
        )
    if best_ms > objective_ms:
        raise _Refused(
            TrialReason.LATENCY,
            f"the fastest of its runs took {best_ms:.3g} ms, the objective is {objective_ms:g} ms",
        )


def _run_cases(folder: Path, manifest: Manifest, pipeline: Any) -> Mapping[str, Any]:
    """Every golden case, or one example where there are none. Returns inputs to time."""
    from agent.runtime.contract import check_outputs
    from agent.runtime.golden import load_inputs, run_case
    from agent.runtime.pipeline import example_inputs

    for case in manifest.golden:
        result = run_case(folder, manifest, case, pipeline.run)
        if result.problem:
            code = TrialReason.NON_FINITE if result.non_finite else TrialReason.GOLDEN_FAILED
            raise _Refused(code, result.problem)
    if manifest.golden:
        return load_inputs(folder, manifest, manifest.golden[0])
    inputs = example_inputs(manifest)
    findings = check_outputs(manifest.outputs, pipeline.run(inputs))
    if findings.non_finite:
        reason = f"{findings.problems[0]} for an input of the least values allowed"
        raise _Refused(TrialReason.NON_FINITE, reason)
    return inputs


def _time_runs(pipeline: Any, inputs: Mapping[str, Any], measures: dict[str, float]) -> None:
    times_ms: list[float] = []
    began_s = time.perf_counter()
    while len(times_ms) < MIN_RUNS or (
        len(times_ms) < MAX_RUNS and time.perf_counter() - began_s < TIMED_S
    ):
        start_s = time.perf_counter()
        pipeline.run(inputs)
        times_ms.append((time.perf_counter() - start_s) * 1000)
    measures["latency_ms"] = round(statistics.median(times_ms), 4)
    measures["best_latency_ms"] = round(min(times_ms), 4)


def _mb(size_bytes: float) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
