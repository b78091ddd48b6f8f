"""Latency of a real model while its versions are swapped: ``python -m benchmarks.swap_window [--swaps N]``.

The real model server process with magika's packaged model (3 MB), asked by unmodified ``tritonclient`` from another
process at about 70 % of what it can take, with and without swaps. Each swap is what the agent does: trial in a child,
load beside the running version, activate, unload the old one. Prints medians, percentiles, their ratio and failures.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from agent.adapters.model_server import ProcessModelServer
from agent.adapters.trial import ProcessTrial
from agent.bundle.folder import read_bundle
from fleet.artifacts.build import BuildResult, build_bundle
from tests.support.bundles import magika_features, magika_project

CLIENTS = 8
SETTLE_S = 1.0


def client_process(address: str, rate: float, pipe: Connection) -> None:
    """Eight clients on a schedule of ``rate`` requests a second in all (0: as fast as they can) until told to stop."""
    import tritonclient.grpc as triton

    features = magika_features(Path(__file__).read_bytes())
    stop = threading.Event()
    samples: list[tuple[float, float, bool]] = []  # started, milliseconds, answered

    def ask(number: int) -> None:
        client = triton.InferenceServerClient(address)
        tensor = triton.InferInput("bytes", list(features.shape), "INT32")
        tensor.set_data_from_numpy(features)
        due = time.monotonic() + number / max(rate, 1.0)
        while not stop.is_set():
            if rate:
                stop.wait(max(0.0, due - time.monotonic()))
                due += CLIENTS / rate
            began = time.monotonic()
            try:
                client.infer("magika", [tensor], client_timeout=10)
                answered = True
            except triton.InferenceServerException:
                answered = False
            samples.append((began, (time.monotonic() - began) * 1000, answered))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    pipe.recv()
    stop.set()
    for thread in threads:
        thread.join()
    pipe.send(samples)


class Load:
    """The clients, in a process of their own."""

    def __init__(self, address: str, rate: float) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=client_process, args=(address, rate, theirs)
        )
        self._process.start()

    async def stop(self) -> list[tuple[float, float, bool]]:
        self._pipe.send("stop")
        samples: list[tuple[float, float, bool]] = await asyncio.to_thread(self._pipe.recv)
        self._process.join()
        return samples[len(samples) // 10 :]  # the first tenth is the clients' own start


def build(folder: Path) -> list[BuildResult]:
    """The same model as two versions."""
    return [
        build_bundle(magika_project(folder, version), folder / f"built-{version}", now_s=1)
        for version in ("1.0.0", "1.0.1")
    ]


async def measure(bundles: list[BuildResult], swaps: int, steady_s: float) -> dict[str, Any]:
    """Steady state and swap window, in one run."""
    trial = ProcessTrial()
    async with ProcessModelServer("127.0.0.1:0") as server:
        await server.load(str(bundles[0].path), bundles[0].manifest_sha256)
        await server.activate("magika", bundles[0].manifest_sha256)
        flat_out = await run_load(server.address, 0, steady_s)
        rate = 0.7 * len(flat_out) / steady_s
        steady = await run_load(server.address, rate, steady_s)

        load = Load(server.address, rate)
        await asyncio.sleep(SETTLE_S)
        began = time.monotonic()
        for number in range(swaps):
            old, new = bundles[number % 2], bundles[(number + 1) % 2]
            manifest, _ = read_bundle(new.path)
            assert (await trial.run(str(new.path), manifest)).ok
            await server.load(str(new.path), new.manifest_sha256)
            await server.activate("magika", new.manifest_sha256)
            await server.unload("magika", old.manifest_sha256)
        swap_s = time.monotonic() - began
        swapping = await load.stop()
    window = [sample for sample in swapping if began <= sample[0] <= began + swap_s]
    return {
        "swaps": swaps,
        "seconds_per_swap": round(swap_s / swaps, 2),
        "requests_per_s_offered": round(rate),
        "steady": percentiles(steady),
        "swapping": percentiles(window),
        "p99_ratio": round(percentiles(window)["p99_ms"] / percentiles(steady)["p99_ms"], 2),
        "failed": sum(not answered for _, _, answered in [*steady, *swapping]),
        "requests": len(steady) + len(swapping),
    }


async def run_load(address: str, rate: float, seconds: float) -> list[tuple[float, float, bool]]:
    load = Load(address, rate)
    await asyncio.sleep(seconds + SETTLE_S)
    return await load.stop()


def percentiles(samples: list[tuple[float, float, bool]]) -> dict[str, float]:
    latencies = [latency_ms for _, latency_ms, _ in samples]
    return {
        f"p{percent}_ms": round(float(np.percentile(latencies, percent)), 2)
        for percent in (50, 90, 99)
    }


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=30)
    parser.add_argument("--steady-s", type=float, default=15.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muster-benchmark-") as folder:
        result = asyncio.run(measure(build(Path(folder)), options.swaps, options.steady_s))
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
