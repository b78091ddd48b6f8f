"""What a server's bookkeeping takes of its throughput: ``python -m benchmarks.bookkeeping [--rounds N] [--publish]``.

Telemetry (counters, latency histogram, labels and confidence of answers), remembering ids for feedback, and offering
copies to a shadow, each as processor time of the thread that answers, against all processor time that the model
server spends on a request at 8 clients. The first is the difference between an answer with and one without, in turns
of a hundred in one process; the second is read from the real server. On a busy machine both grow alike.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from agent.runtime.counters import VersionCounters
from agent.runtime.registry import Registry
from agent.runtime.routing import Role, Share
from agent.serving.protocol import InferenceProtocol
from agent.serving.service import InferenceService
from agent.serving.watchdog import RunWatchdog
from benchmarks.fronts import ask
from benchmarks.load import require_generator
from benchmarks.results_file import RESULTS, put_section
from benchmarks.serving import machine, say
from benchmarks.serving_models import OIP_TYPES, VERSION, Workload, make_workloads
from fleet.artifacts.build import BuildResult, build_bundle
from protos import inference_pb2 as oip

__all__ = ["Figures", "main", "markdown", "measure_bookkeeping"]

GOAL_PERCENT: Final = 2.0
BATCH: Final = 100
CLIENTS: Final = 8
COPIED_BP: Final = 1000


class _Uncounted(VersionCounters):
    """Counts nothing."""

    __slots__ = ()

    def answered(self, *_: Any, **__: Any) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Microseconds of one model: a whole request in the server, and what each part of the bookkeeping adds to an
    answer."""

    model: str
    request_us: float
    parts_us: Mapping[str, float] = field(default_factory=dict)

    def percent(self, part: str) -> float:
        """Of the server's time for a request."""
        return 100 * self.parts_us[part] / self.request_us


def message_of(workload: Workload, request_id: str = "") -> bytes:
    """The request as a client sends it."""
    request = oip.ModelInferRequest(model_name=workload.name, id=request_id)
    for name, value in workload.inputs.items():
        array = np.asarray(value)
        request.inputs.add(name=name, datatype=OIP_TYPES[array.dtype.name], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return bytes(request.SerializeToString())


def measure_bookkeeping(workload: Workload, other: BuildResult, rounds: int) -> Mapping[str, float]:
    """Microseconds that each part adds to an answer: medians over ``rounds`` of the difference to an answer without.
    ``other`` is to be the shadow (``twin``)."""
    registry = Registry()
    protocol = InferenceProtocol(registry, RunWatchdog(max_run_s=60.0, look_every_s=0.25))
    service = InferenceService(protocol)
    servable = registry.load(workload.bundle, workload.manifest_sha256)
    registry.activate(workload.name, workload.manifest_sha256)
    registry.load(other.path, other.manifest_sha256)
    plain = [message_of(workload) for _ in range(BATCH)]
    named = [message_of(workload, f"request-{number:04}") for number in range(BATCH)]
    counted, uncounted = servable.counters, _Uncounted(servable.counters.objective_s)
    observer = servable.observer
    share = Share(other.manifest_sha256, Role.SHADOW, COPIED_BP)

    def batch(messages: Sequence[bytes]) -> float:
        began_s = time.thread_time()
        for message in messages:
            service.infer(service.read(message), lambda: None, waits=False)
        return (time.thread_time() - began_s) / BATCH * 1e6

    def without() -> float:
        servable.counters, servable.observer = uncounted, None
        return batch(plain)

    def counting() -> float:
        servable.counters, servable.observer = counted, observer
        return batch(plain)

    def naming() -> float:
        servable.counters, servable.observer = uncounted, None
        return batch(named)

    shadows = protocol._shadows
    # Its thread takes no copy: the candidate's run is not bookkeeping.
    shadows._started = lambda: True

    def shadowing() -> float:
        servable.counters, servable.observer = uncounted, None
        registry.share(workload.name, share)
        try:
            return batch(named)
        finally:
            registry.share(workload.name, None)
            copies.append(len(shadows._copies))
            shadows._copies.clear()
            shadows._bytes = 0

    parts: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "telemetry": (counting, without),
        "ids for feedback": (naming, without),
        "copies for a shadow": (shadowing, naming),
    }
    copies: list[int] = []
    found = {}
    for part, (with_it, without_it) in parts.items():
        with_it(), without_it()
        pairs = [(with_it(), without_it()) for _ in range(rounds)]
        found[part] = round(statistics.median(a - b for a, b in pairs), 3)
    assert all(copies), "a shadow without copies"
    return found


def run(rounds: int, seconds: float, cache: Path) -> Sequence[Figures]:
    """Measure every model."""
    found = []
    with tempfile.TemporaryDirectory(prefix="muster-benchmark-") as name:
        folder = Path(name)
        for workload in make_workloads(folder, cache / "packages"):
            say(f"{workload.name}: the server")
            cells = asyncio.run(ask(workload, "http2", seconds, folder))
            say(f"{workload.name}: its bookkeeping")
            parts = measure_bookkeeping(workload, twin(workload, folder), rounds)
            found.append(
                Figures(f"{workload.size}: {workload.what}", cells[CLIENTS].server_us, parts)
            )
    return found


def twin(workload: Workload, folder: Path) -> BuildResult:
    """The same model as another version."""
    project = folder / f"{workload.name}-project"
    said = (project / "muster.toml").read_text(encoding="utf-8")
    (project / "muster.toml").write_text(said.replace(VERSION, f"{VERSION}-twin"), encoding="utf-8")
    return build_bundle(project, folder / f"{workload.name}-twin", now_s=1)


def markdown(figures: Sequence[Figures], where: str, rounds: int) -> str:
    """The section of results.md."""
    lines = [
        "## What bookkeeping takes of throughput",
        "",
        "`python -m benchmarks.bookkeeping --publish`",
        "",
        f"{where}. Medians of {rounds} pairs of {BATCH} answers. The server's processor time is a whole request's over "
        f"gRPC, {CLIENTS} clients; a shadow gets copies of {COPIED_BP / 100:.0f} % of the requests.",
        "",
        f"| model | server, us a request | {' | '.join(figures[0].parts_us)} "
        f"| goal: at most {GOAL_PERCENT:.0f} % each |",
        f"|---|---|{'---|' * len(figures[0].parts_us)}---|",
    ]
    for one in figures:
        cells = [f"{us:.1f} us ({one.percent(part):.1f} %)" for part, us in one.parts_us.items()]
        missed = [part for part in one.parts_us if one.percent(part) > GOAL_PERCENT]
        verdict = f"**missed** by {', '.join(missed)}" if missed else "met"
        lines.append(f"| {one.model} | {one.request_us:.0f} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load on the real server")
    cache = Path.home() / ".cache" / "muster-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="where the models are kept")
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results.md")
    options = parser.parse_args()
    require_generator()
    options.cache.mkdir(parents=True, exist_ok=True)
    text = markdown(run(options.rounds, options.seconds, options.cache), machine(), options.rounds)
    if options.publish:
        put_section(RESULTS, "bookkeeping", text)
    print(text)


if __name__ == "__main__":
    main()
