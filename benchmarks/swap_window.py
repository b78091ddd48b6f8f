"""Latency of a real model while its versions are swapped: ``python -m benchmarks.swap_window [--swaps N] [--publish]``.

The real model server process with magika's packaged model (3 MB), asked by eight unmodified ``tritonclient`` clients
(gRPC, REST or half and half) from another process at about 70 % of what it can take, with and without swaps. Each
swap is what the agent does: trial in a child, load beside the running version, activate, unload the old one. Prints
percentiles and their ratio, failures, answers from a version that was not active any more, and the peak of memory.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import psutil

from agent.adapters.measured import MeasuredStore
from agent.adapters.model_server import OtherFronts, ProcessModelServer
from agent.adapters.trial import ProcessTrial, TrialKeeping
from agent.bundle.folder import read_bundle
from benchmarks.results_file import RESULTS, put_section
from benchmarks.serving import machine
from fleet.artifacts.build import BuildResult, build_bundle
from tests.support.bundles import magika_features, magika_project

CLIENTS: Final = 8
GOAL_P99_RATIO: Final = 1.5
SETTLE_S: Final = 1.0
MODEL: Final = "magika"
VERSIONS: Final = ("1.0.0", "1.0.1")
TRANSPORTS: Final = ("grpc", "http", "both")


class Sample(NamedTuple):
    """One request: when it began (monotonic), how long it took, and the version that answered ("" for a failure)."""

    began_s: float
    took_ms: float
    version: str


class Active(NamedTuple):
    """A version became the one that answers between these two moments."""

    asked_s: float
    acknowledged_s: float
    version: str


@dataclass(frozen=True)
class Target:
    """Where the clients ask: every client one of the addresses, in turns. ``rate``: requests a second in all, 0 for as
    fast as they can."""

    addresses: Sequence[tuple[str, str]]
    rate: float = 0.0


@dataclass
class Swaps:
    """What happened in the window."""

    began_s: float = 0.0
    ended_s: float = 0.0
    active: list[Active] = field(default_factory=list)
    trial_peak_bytes: float = 0.0


def grpc_asker(address: str, features: Any) -> Callable[[], str]:
    """A function that asks once over gRPC and returns the version that answered."""
    import tritonclient.grpc as triton

    client = triton.InferenceServerClient(address)
    tensor = triton.InferInput("bytes", list(features.shape), "INT32")
    tensor.set_data_from_numpy(features)

    def ask() -> str:
        answer = client.infer(MODEL, [tensor], client_timeout=10)
        return str(answer.get_response().model_version)

    return ask


def http_asker(address: str, features: Any) -> Callable[[], str]:
    """The same over REST, with the binary tensor extension."""
    import tritonclient.http as triton

    client = triton.InferenceServerClient(address, network_timeout=10.0, connection_timeout=10.0)
    tensor = triton.InferInput("bytes", list(features.shape), "INT32")
    tensor.set_data_from_numpy(features)

    def ask() -> str:
        return str(client.infer(MODEL, [tensor]).get_response()["model_version"])

    return ask


def client_process(target: Target, pipe: Connection) -> None:
    """Eight clients until told to stop; their samples go through the pipe."""
    features = magika_features(Path(__file__).read_bytes())
    stop = threading.Event()
    samples: list[Sample] = []

    def run(number: int) -> None:
        transport, address = target.addresses[number % len(target.addresses)]
        # Made on the thread that uses it: the REST client belongs to its thread.
        ask = (grpc_asker if transport == "grpc" else http_asker)(address, features)
        due = time.monotonic() + number / max(target.rate, 1.0)
        while not stop.is_set():
            if target.rate:
                stop.wait(max(0.0, due - time.monotonic()))
                due += CLIENTS / target.rate
            began = time.monotonic()
            try:
                version = ask()
            except Exception:  # noqa: BLE001 whatever it is, a client had no answer
                version = ""
            samples.append(Sample(began, (time.monotonic() - began) * 1000, version))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    pipe.recv()
    stop.set()
    for thread in threads:
        thread.join()
    pipe.send(samples)


class Load:
    """The clients, in a process of their own."""

    def __init__(self, target: Target) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=client_process, args=(target, theirs)
        )
        self._process.start()

    async def stop(self) -> list[Sample]:
        self._pipe.send("stop")
        samples: list[Sample] = await asyncio.to_thread(self._pipe.recv)
        self._process.join()
        return samples[len(samples) // 10 :]  # the first tenth is the clients' own start


def build(folder: Path) -> list[BuildResult]:
    """The same model as two versions."""
    return [
        build_bundle(magika_project(folder, version), folder / f"built-{version}", now_s=1)
        for version in VERSIONS
    ]


def targets(server: ProcessModelServer, transport: str) -> list[tuple[str, str]]:
    both = [("grpc", server.address), ("http", server.http_address)]
    return both if transport == "both" else [place for place in both if place[0] == transport]


async def measure(
    bundles: list[BuildResult], options: argparse.Namespace, measured: MeasuredStore
) -> dict[str, Any]:
    """Steady state and swap window, in one run."""
    await first_trials(bundles, measured)
    async with ProcessModelServer(
        "127.0.0.1:0", form_of=measured.form_path, fronts=OtherFronts(http="127.0.0.1:0")
    ) as server:
        assert server.state.pid is not None
        process = psutil.Process(server.state.pid)
        await server.load(str(bundles[0].path), bundles[0].manifest_sha256)
        await server.activate(MODEL, bundles[0].manifest_sha256)
        places = targets(server, options.transport)
        flat_out = await run_load(Target(places), options.steady_s)
        rate = 0.7 * len(flat_out) / options.steady_s
        steady = await run_load(Target(places, rate), options.steady_s)
        before_bytes = process.memory_info().rss

        load = Load(Target(places, rate))
        await asyncio.sleep(SETTLE_S)
        swaps = await swap_over_and_over(
            server, bundles, options.swaps, trials=not options.no_trials
        )
        swapping = await load.stop()
        peak_bytes = peak_rss_bytes(process.pid)
    window = [sample for sample in swapping if swaps.began_s <= sample.began_s <= swaps.ended_s]
    if options.transport == "both":
        places = [("grpc and http", "")]
    return {
        "transport": places[0][0],
        "swaps": options.swaps,
        "trials": not options.no_trials,
        "seconds_per_swap": round((swaps.ended_s - swaps.began_s) / options.swaps, 3),
        "requests_per_s_offered": round(rate),
        "steady": percentiles(steady),
        "swapping": percentiles(window),
        "p99_ratio": round(percentiles(window)["p99_ms"] / percentiles(steady)["p99_ms"], 2),
        "requests": len(steady) + len(swapping),
        "failed": sum(not sample.version for sample in [*steady, *swapping]),
        "wrong_version": len(wrong_versions(window, swaps.active)),
        "server_rss_mb": round(before_bytes / 1e6, 1),
        "server_peak_rss_mb": round(peak_bytes / 1e6, 1),
        "trial_peak_rss_mb": round(swaps.trial_peak_bytes / 1e6, 1),
    }


async def first_trials(bundles: Sequence[BuildResult], measured: MeasuredStore) -> None:
    """The trial that every bundle has once on a device: it also makes the saved form."""
    trial = ProcessTrial(keeping=TrialKeeping(measured))
    for bundle in bundles:
        manifest, _ = read_bundle(bundle.path)
        assert (await trial.run(str(bundle.path), manifest)).ok


async def swap_over_and_over(
    server: ProcessModelServer, bundles: Sequence[BuildResult], count: int, *, trials: bool
) -> Swaps:
    """From one version to the other and back, each time with a trial or without."""
    trial = ProcessTrial()
    swaps = Swaps(began_s=time.monotonic())
    swaps.active.append(Active(swaps.began_s, swaps.began_s, VERSIONS[0]))
    for number in range(count):
        old, new = bundles[number % 2], bundles[(number + 1) % 2]
        manifest, _ = read_bundle(new.path)
        if trials:
            result = await trial.run(str(new.path), manifest)
            assert result.ok, result.reason
            peak_bytes = result.measures["peak_rss_bytes"]
            swaps.trial_peak_bytes = max(swaps.trial_peak_bytes, peak_bytes)
        await server.load(str(new.path), new.manifest_sha256)
        asked_s = time.monotonic()
        await server.activate(MODEL, new.manifest_sha256)
        swaps.active.append(Active(asked_s, time.monotonic(), manifest.version))
        await server.unload(MODEL, old.manifest_sha256)
    swaps.ended_s = time.monotonic()
    return swaps


def wrong_versions(samples: Sequence[Sample], active: Sequence[Active]) -> list[Sample]:
    """Answers from a version that was not active at any moment between question and answer."""
    wrong = []
    for sample in samples:
        ended_s = sample.began_s + sample.took_ms / 1000
        last = max(
            i for i, it in enumerate(active) if i == 0 or it.acknowledged_s <= sample.began_s
        )
        allowed = {it.version for it in active[last:] if it.asked_s <= ended_s}
        if sample.version and sample.version not in allowed:
            wrong.append(sample)
    return wrong


async def run_load(target: Target, seconds: float) -> list[Sample]:
    load = Load(target)
    await asyncio.sleep(seconds + SETTLE_S)
    return await load.stop()


def percentiles(samples: Sequence[Sample]) -> dict[str, float]:
    latencies = [sample.took_ms for sample in samples]
    return {
        f"p{percent}_ms": round(float(np.percentile(latencies, percent)), 2)
        for percent in (50, 90, 99)
    }


def peak_rss_bytes(pid: int) -> int:
    """The most memory the process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def section(result: Mapping[str, Any], steady_s: float) -> str:
    """The chapter of results.md."""
    met = "met" if result["p99_ratio"] <= GOAL_P99_RATIO else "**missed**"
    rows = [
        f"| {name.removesuffix('_ms')} ms | {took} | {result['swapping'][name]} |"
        for name, took in result["steady"].items()
    ]
    trials = result["trials"]
    options = f"--swaps {result['swaps']} --steady-s {steady_s:g} {'' if trials else '--no-trials '}--publish"
    load = (
        f"{machine()}. Magika's packaged model, {CLIENTS} clients over {result['transport']} on the same cores at "
        f"about 70 % of what the server can take ({result['requests_per_s_offered']} requests a second), swaps one "
        f"behind the other ({result['seconds_per_swap']} s each, "
        + ("trial included): a trial runs nearly all the time." if trials else "without trials).")
    )
    peak = f", a trial's {result['trial_peak_rss_mb']}" if trials else ""
    found = (
        f"{result['requests']:,} requests, {result['failed']} failed, {result['wrong_version']} answered by a version "
        f"that was no longer active. Memory of the server {result['server_rss_mb']} MB, {result['server_peak_rss_mb']} "
        f"at its peak{peak}. p99 while swapping is {result['p99_ratio']} times the "
        f"steady one; the goal of at most {GOAL_P99_RATIO} is {met}."
    )
    title = "Swaps under load" if trials else "Many swaps under load"
    head = [f"## {title}", "", f"`python -m benchmarks.swap_window {options}`", "", load, ""]
    table = ["| | steady | swapping |", "|---|---|---|", *rows]
    return "\n".join([*head, *table, "", found])


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=30)
    parser.add_argument("--steady-s", type=float, default=15.0)
    parser.add_argument("--transport", choices=TRANSPORTS, default="both")
    parser.add_argument(
        "--no-trials",
        action="store_true",
        help="load, activate and unload alone, for many swaps in little time",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muster-benchmark-") as folder:
        root = Path(folder)
        result = asyncio.run(measure(build(root), options, MeasuredStore(root / "measured")))
    if options.publish:
        name = "many swaps" if options.no_trials else "swap window"
        put_section(RESULTS, name, section(result, options.steady_s))
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
