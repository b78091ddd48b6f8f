"""Model servers side by side: ``python -m benchmarks.serving [--quick] [--json] [--plot FILE] [--publish]``.

The agent's model server, MLServer, MLflow's model server and onnxruntime without any server, on three packaged models,
over gRPC and REST, with 1 and 8 clients. Several rounds; in each every server is started anew, measured and stopped, so
that what else happens on the machine meets all of them; medians over the rounds are shown, with the spread of the
throughput. The first run makes a virtual environment for each peer (``--cache``).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from benchmarks.load import Measured, measure, require_generator
from benchmarks.results_file import RESULTS, put_section
from benchmarks.serving_models import Workload, make_workloads
from benchmarks.serving_report import (
    Cell,
    Results,
    ServerFacts,
    goals,
    markdown,
    readme,
)
from benchmarks.serving_servers import KINDS, Running, Unavailable, prepare, start
from benchmarks.svg import throughput_chart

CLIENTS: Final = (1, 8)
IDLE_S: Final = 1.0
HERE: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Plan:
    """How long everything takes."""

    rounds: int
    warm_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Key:
    server: str
    way: str
    model: str
    clients: int


class Benchmark:
    """Collects what each round measured."""

    def __init__(self, plan: Plan, folder: Path, cache: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._cells: dict[_Key, list[Measured]] = defaultdict(list)
        self._facts: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        self._left_out: dict[str, str] = {}
        self._pythons: dict[str, Path] = {}
        for kind in KINDS:
            say(f"preparing {kind}")
            try:
                self._pythons[kind] = prepare(kind, cache)
            except Unavailable as reason:
                self._left_out[kind] = str(reason)
        self._workloads = make_workloads(folder, cache / "packages")

    def run(self) -> Results:
        """Every round, then the medians."""
        loads = [os.getloadavg()[0]]
        for number in range(self._plan.rounds):
            for workload in self._workloads:
                say(f"round {number + 1} of {self._plan.rounds}: {workload.name}")
                self._direct(workload)
                # Another order each round: what is warm or throttled meets each server once.
                kinds = [kind for kind in KINDS if kind in self._pythons]
                for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
                    self._server(kind, workload)
            loads.append(os.getloadavg()[0])
        return Results(
            machine=machine(),
            versions=self._versions(),
            rounds=self._plan.rounds,
            seconds=self._plan.seconds,
            load_average=(round(min(loads), 2), round(max(loads), 2)),
            models=[(one.name, one.size, one.what) for one in self._workloads],
            cells=[_cell(key, found) for key, found in self._cells.items()],
            servers=[
                ServerFacts(
                    server,
                    model,
                    round(statistics.median(pss for pss, _ in found) / 1e6, 1),
                    round(statistics.median(start_s for _, start_s in found), 2),
                )
                for (server, model), found in self._facts.items()
            ],
            left_out=self._left_out,
        )

    def _server(self, kind: str, workload: Workload) -> None:
        where = f"{kind}, {workload.name}"
        if where in self._left_out:
            return
        try:
            running = start(
                kind, self._pythons[kind], workload, self._folder / kind / workload.name
            )
        except Unavailable as reason:
            self._left_out[where] = str(reason)
            say(f"left out: {where}: {reason}")
            return
        try:
            self._measure(kind, workload, running)
        finally:
            running.stop()

    def _measure(self, kind: str, workload: Workload, running: Running) -> None:
        plan = self._plan
        time.sleep(IDLE_S)
        self._facts[kind, workload.name].append((running.memory_bytes(), running.start_s))
        for way in running.ways:
            for clients in CLIENTS:
                found = measure(way.target, clients, plan.warm_s, plan.seconds, self._folder)
                self._cells[_Key(kind, way.name, workload.name, clients)].append(found)
        if running.grpc_port:
            for clients in CLIENTS:
                found = self._process(
                    "benchmarks.peers.triton",
                    [str(running.grpc_port), workload.name, self._inputs(workload), str(clients)],
                )
                key = _Key(kind, "gRPC, tritonclient", workload.name, clients)
                self._cells[key].append(found)
        names = {way.name for way in running.ways}
        if kind == "muster" and not any(name.startswith("REST") for name in names):
            self._left_out["muster, REST"] = "this version's model server speaks gRPC alone"

    def _direct(self, workload: Workload) -> None:
        for threads in (1, 2):
            found = self._process(
                "benchmarks.peers.direct",
                [str(workload.onnx), self._inputs(workload), str(threads)],
            )
            self._cells[_Key("direct", "session.run", workload.name, threads)].append(found)

    def _process(self, module: str, arguments: Sequence[str]) -> Measured:
        timing = [str(self._plan.warm_s), str(self._plan.seconds)]
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, *timing],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))

    def _inputs(self, workload: Workload) -> str:
        path = self._folder / f"{workload.name}.npz"
        if not path.exists():
            np.savez(path, **workload.inputs)
        return str(path)

    def _versions(self) -> Mapping[str, str]:
        found = {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()}
        for kind, python in self._pythons.items():
            name = "muster-edge" if kind == "muster" else kind
            code = f"import importlib.metadata as m; print(m.version({name!r}))"
            ran = subprocess.run(
                [str(python), "-c", code], capture_output=True, text=True, check=True
            )
            found[kind] = ran.stdout.strip()
        return found


def _cell(key: _Key, found: Sequence[Measured]) -> Cell:
    rates = [one.per_s for one in found]
    return Cell(
        key.server, key.way, key.model, key.clients,
        per_s=round(statistics.median(rates), 1),
        least_per_s=min(rates),
        most_per_s=max(rates),
        p50_ms=round(statistics.median(one.p50_ms for one in found), 3),
        p99_ms=round(statistics.median(one.p99_ms for one in found), 3),
        requests=sum(one.requests for one in found),
        failed=sum(one.failed for one in found),
    )  # fmt: skip


def machine() -> str:
    """Processor, cores and memory in words."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, "
        f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}"
    )


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, then print and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: does it work at all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured, each cell and round")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a chart (SVG)")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write benchmarks/results.md, serving.svg and the README's table",
    )
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument(
        "--cache", type=Path, default=cache_home / "muster-benchmarks",
        help="where the peers' virtual environments and packages are kept",
    )  # fmt: skip
    options = parser.parse_args()
    plan = Plan(options.rounds, 0.5, options.seconds)
    if options.quick:
        plan = Plan(1, 0.2, 0.5)
    require_generator()
    options.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="muster-benchmark-") as folder:
        results = Benchmark(plan, Path(folder), options.cache.absolute()).run()
    plot = options.plot or (HERE / "serving.svg" if options.publish else None)
    if plot is not None:
        plot.write_text(throughput_chart(results), encoding="utf-8")
    if options.publish:
        put_section(RESULTS, "serving", markdown(results, plot_name="serving.svg"))
        put_section(HERE.parent / "README.md", "serving", readme(results))
    if options.json:
        shown: dict[str, Any] = {
            **asdict(results),
            "goals": [asdict(one) for one in goals(results)],
        }
        print(json.dumps(shown))
    else:
        print(markdown(results))


if __name__ == "__main__":
    main()
