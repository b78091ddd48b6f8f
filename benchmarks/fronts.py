"""The model server's front ends side by side: ``python -m benchmarks.fronts [--rounds N] [--model tiny]``.

Our own HTTP/2, grpcio (``[serving] grpc_front``) and REST with binary tensors, the same prepared requests, in an order
that turns from round to round; medians are shown. Beside throughput and latency stands the processor time that the
server itself spent on a request: on a busy machine it is the figure that still means something.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from agent.adapters.model_server import OtherFronts, ProcessModelServer
from benchmarks.load import Measured, measure, require_generator
from benchmarks.serving import machine, say
from benchmarks.serving_models import Workload, make_workloads
from benchmarks.serving_servers import grpc_way, rest_binary_way

__all__ = ["main"]

CLIENTS: Final = (1, 8)
WARM_S: Final = 0.5
FRONTS: Final = ("http2", "grpcio", "REST")


@dataclass(frozen=True, slots=True)
class Cell:
    """One front, model and number of clients in one round."""

    measured: Measured
    server_us: float
    """Processor time of the server's process, a request."""


async def ask(workload: Workload, front: str, seconds: float, folder: Path) -> Mapping[int, Cell]:
    """Start a server with one model and load it with each number of clients."""
    fronts = OtherFronts(http="127.0.0.1:0", grpc_front="http2" if front == "REST" else front)
    async with ProcessModelServer("127.0.0.1:0", fronts=fronts) as server:
        await server.load(str(workload.bundle), workload.manifest_sha256)
        await server.activate(workload.name, workload.manifest_sha256)
        address = server.http_address if front == "REST" else server.address
        way = rest_binary_way if front == "REST" else grpc_way
        target = way(workload, int(address.rpartition(":")[2])).target
        process = psutil.Process(server.state.pid)
        cells = {}
        for clients in CLIENTS:
            before = process.cpu_times()
            found = await asyncio.to_thread(measure, target, clients, WARM_S, seconds, folder)
            after = process.cpu_times()
            spent_s = after.user + after.system - before.user - before.system
            asked = max(1.0, found.requests * (seconds + WARM_S) / seconds)
            cells[clients] = Cell(found, spent_s / asked * 1e6)
        return cells


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured, each cell and round")
    parser.add_argument("--model", choices=("tiny", "small", "medium"), action="append")
    cache = Path.home() / ".cache" / "muster-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="where the models are kept")
    options = parser.parse_args()
    require_generator()
    options.cache.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str, int], list[Cell]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="muster-benchmark-") as name:
        folder = Path(name)
        workloads = make_workloads(folder, options.cache / "packages")
        for number in range(options.rounds):
            for workload in workloads:
                if options.model and workload.size not in options.model:
                    continue
                say(f"round {number + 1} of {options.rounds}: {workload.name}")
                turn = number % len(FRONTS)
                for front in FRONTS[turn:] + FRONTS[:turn]:
                    cells = asyncio.run(ask(workload, front, options.seconds, folder))
                    for clients, cell in cells.items():
                        found[workload.size, front, clients].append(cell)
    print(machine())
    print(
        f"\n{'model':8} {'front':7} clients {'a second':>9} {'p50 us':>8} {'server us a request':>20}"
    )
    for (size, front, clients), cells in sorted(found.items()):
        rate = statistics.median(cell.measured.per_s for cell in cells)
        p50_us = statistics.median(cell.measured.p50_ms for cell in cells) * 1000
        spent_us = statistics.median(cell.server_us for cell in cells)
        print(f"{size:8} {front:7} {clients:7} {rate:9.0f} {p50_us:8.0f} {spent_us:20.0f}")


if __name__ == "__main__":
    main()
