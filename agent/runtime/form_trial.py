"""Makes and measures the saved form of a bundle: ``python -m agent.runtime.form_trial FOLDER TARGET``.

A throw-away child like the trial's, run only for a bundle that passed it.

Rules kept here:

- Both forms are measured in one process, in turns, so that other work on the device hits both alike:
  load time, one row, and a batch where the contract allows one (a mapped form multiplies batches
  slower).
- The golden cases must hold for the saved form too.
- Of a form that is not better, only the measures stay.
- Exit code 0 once ``form.json`` is written; anything else means that there is no saved form.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.bundle import Manifest, manifest_sha256
from agent.bundle.folder import read_bundle
from agent.errors import BundleError
from agent.runtime.confine import confine_trial
from agent.runtime.providers import DEFAULT_PROVIDERS
from agent.runtime.sandbox import (
    die_with_parent,
    leave_network,
    limit_cpu,
    limit_memory,
    lock_down,
)
from agent.runtime.saved_form import (
    FormMeasures,
    Maker,
    SavedForm,
    better_form,
    files_of,
    processor,
    stage_file,
    write_form,
)
from agent.runtime.verdict import EXIT_OK, EXIT_REFUSED

__all__ = ["main"]

BATCH: Final = 8
LOADS: Final = 3
"""Of each form; the fastest counts."""
MIN_RUNS: Final = 5
MAX_RUNS: Final = 100
TIMED_S: Final = 0.4
"""Runs of both forms in turns go on for so long, one kind of input."""
FILE_SLACK_BYTES: Final = 16 << 20
"""A saved file may be larger than the whole bundle by so much: folded constants."""
ROOM: Final = 2
"""Times the memory of the trial: both forms are loaded at once."""


@dataclass(frozen=True, slots=True)
class _Work:
    folder: Path
    target: Path
    manifest: Manifest
    maker: Maker


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the form and write its record. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="agent.runtime.form_trial", description="Make and measure a bundle's saved form."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--cpu-s", type=int, default=120)
    parser.add_argument("--default-memory-bytes", type=int, default=1 << 30)
    parser.add_argument("--providers", default=",".join(DEFAULT_PROVIDERS))
    options = parser.parse_args(arguments)
    die_with_parent()
    try:
        manifest, raw = read_bundle(options.folder)
        lock_down(manifest.size_bytes + FILE_SLACK_BYTES)
        limit_cpu(options.cpu_s)
        providers = tuple(options.providers.split(","))
        left = leave_network()
        confine_trial(options.folder, providers, keep_in=options.target, network_left=left)
        from agent.runtime.engine import ort

        limit_memory(ROOM * (manifest.requirements.memory_bytes or options.default_memory_bytes))
        maker = Maker(manifest_sha256(raw), ort.__version__, processor(), providers)
        form = _make(_Work(options.folder, options.target, manifest, maker))
        write_form(options.target, form)
    except (BundleError, MemoryError, OSError) as error:
        sys.stderr.write(f"{error or type(error).__name__}\n")
        return EXIT_REFUSED
    return EXIT_OK


def _make(work: _Work) -> SavedForm:
    """Save, load both, compare.

    Raises:
        BundleError: a form cannot be saved, loaded or run. OSError: the disk.
    """
    from agent.runtime.pipeline import Pipeline
    from agent.runtime.session import EngineOptions, save_session, threads_of

    manifest, engine = work.manifest, EngineOptions(work.maker.providers)
    for number, stage in enumerate(manifest.stages):
        save_session(
            work.folder / stage.file,
            f"stage {stage.name!r}: {stage.file}",
            threads_of(manifest.intra_op_threads, engine),
            engine,
            work.target / stage_file(number),
        )
    plain_ms, plain = _load(lambda: Pipeline.load(work.folder, manifest, engine))
    saved_ms, saved = _load(lambda: Pipeline.load(work.folder, manifest, engine, form=work.target))
    one, batch = _inputs(work, saved)
    plain_one, saved_one = _time_both(plain, saved, one)
    plain_many, saved_many = _time_both(plain, saved, batch) if batch else (0.0, 0.0)
    before = FormMeasures(plain_ms, plain_one, plain_many)
    after = FormMeasures(saved_ms, saved_one, saved_many)
    kept = _golden(work, saved) and better_form(before, after)
    if not kept:
        for path in list(work.target.iterdir()):
            path.unlink()
    return SavedForm(work.maker, kept, before, after, files_of(work.target))


def _load(load: Any) -> tuple[float, Any]:
    """The fastest of several loads, and what the last one made."""
    times_ms: list[float] = []
    pipeline = None
    for _ in range(LOADS):
        pipeline = None  # not two of one form at once
        began_s = time.perf_counter()
        pipeline = load()
        times_ms.append((time.perf_counter() - began_s) * 1000)
    return round(min(times_ms), 3), pipeline


def _inputs(work: _Work, pipeline: Any) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """One input, and a batch of it where the contract leaves the first dimension free."""
    import numpy as np

    from agent.runtime.errors import InferenceError
    from agent.runtime.golden import load_inputs
    from agent.runtime.pipeline import example_inputs

    manifest = work.manifest
    golden = manifest.golden
    one = load_inputs(work.folder, manifest, golden[0]) if golden else example_inputs(manifest)
    free = all(spec.shape and spec.shape[0] == -1 for spec in manifest.inputs)
    if not free or any(array.shape[0] != 1 for array in one.values()):
        return one, None
    batch = {name: np.repeat(array, BATCH, axis=0) for name, array in one.items()}
    try:
        pipeline.run(batch)
    except InferenceError:  # the free dimension is not a batch after all
        return one, None
    return one, batch


def _time_both(plain: Any, saved: Any, inputs: Mapping[str, Any]) -> tuple[float, float]:
    """Milliseconds of the fastest run of each, taken in turns."""
    best_ms = [float("inf"), float("inf")]
    began_s = time.perf_counter()
    runs = 0
    while runs < MIN_RUNS or (runs < MAX_RUNS and time.perf_counter() - began_s < TIMED_S):
        for at, pipeline in enumerate((plain, saved)):
            start_s = time.perf_counter()
            pipeline.run(inputs)
            best_ms[at] = min(best_ms[at], (time.perf_counter() - start_s) * 1000)
        runs += 1
    return round(best_ms[0], 4), round(best_ms[1], 4)


def _golden(work: _Work, saved: Any) -> bool:
    """Whether every golden case holds for the saved form."""
    from agent.runtime.golden import run_case

    return not any(
        run_case(work.folder, work.manifest, case, saved.run).problem
        for case in work.manifest.golden
    )


if __name__ == "__main__":
    sys.exit(main())
