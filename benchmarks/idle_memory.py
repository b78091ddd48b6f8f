"""Memory of an idle agent with one small model: ``python -m benchmarks.idle_memory [--model digits|magika] [--json]``.

A real fleet manager brings the model to a real agent; 200 requests are asked; then the fleet manager is stopped and
the agent's two processes are left in peace, so long that they give back what they do not need; then 200 requests are
asked again. Looked at three times: right after the first requests, after the rest, and after the last ones. What rest
costs the requests after it is shown as well: the first one, and the median of all.

Shown is PSS as it would be were they alone on the machine, as on a device: what a process has for itself, and of each
mapped file its resident part, halved where the other one maps it too. "Own" is the first of the two: memory that the
kernel cannot have back, where code of libraries it can, at rest or not. The kernel's own PSS, shown beside it, is less
wherever anything else here uses the same Python or libraries.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import tritonclient.grpc as triton

from agent.health.calm import CalmLimits
from benchmarks.memory import alone_bytes, own_bytes
from benchmarks.serving import machine
from tests.support.bundles import digits_data, digits_project, magika_features, magika_project
from tests.support.fleet import Device, FleetHost

REQUESTS: Final = 200
REST_S: Final = CalmLimits().rest_s + 3 * CalmLimits().look_s
LOOKS: Final = 5
MB: Final = 1e6
KINDS: Final = ("alone", "own", "pss", "rss")
GOALS_MB: Final = {"supervisor": 45.0, "model server": 85.0, "together": 120.0}


Sizes = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Measured:
    """``sizes``: by the moment and the process. ``first_ms``, ``median_ms``: of the requests before and after rest."""

    sizes: dict[str, Sizes]
    first_ms: tuple[float, float]
    median_ms: tuple[float, float]


def measure(model: str, folder: Path) -> Measured:
    """Bring the model to a device and look at it before and after rest."""
    if model == "digits":
        project = digits_project(folder)
        inputs: Mapping[str, Any] = {"image": digits_data().test_images[:1]}
    else:
        project = magika_project(folder)
        inputs = {"bytes": magika_features(Path(__file__).read_bytes())}
    host = FleetHost(folder / "home", name="idle")
    host.init()
    host.start()
    device = Device(host, folder / "device", "idle-1")
    try:
        device.start()
        device.wait_known()
        rollout = host.start_rollout(host.publish(project), [(100, 0.5)], device=device.id)
        host.wait_rollout(rollout, "promoted")
        ask(device.address, model, inputs)  # what only the very first requests need
        host.stop()
        before_ms = ask(device.address, model, inputs)
        sizes = {"after requests": look(device)}
        time.sleep(REST_S)
        sizes["at rest"] = look(device)
        after_ms = ask(device.address, model, inputs)
        sizes["after requests again"] = look(device)
        asked = (before_ms, after_ms)
        firsts, medians = [it[0] for it in asked], [statistics.median(it) for it in asked]
        return Measured(sizes, (firsts[0], firsts[1]), (medians[0], medians[1]))
    finally:
        device.stop()
        host.stop()


def ask(address: str, model: str, arrays: Mapping[str, Any]) -> Sequence[float]:
    """Milliseconds of each of ``REQUESTS``, one after the other on a new connection."""
    client = triton.InferenceServerClient(address)
    inputs = []
    for tensor in client.get_model_metadata(model).inputs:
        one = triton.InferInput(tensor.name, list(arrays[tensor.name].shape), tensor.datatype)
        inputs.append(one.set_data_from_numpy(arrays[tensor.name]))
    took = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        client.infer(model, inputs)
        took.append((time.perf_counter() - began) * 1000)
    client.close()
    return took


def look(device: Device) -> Sizes:
    """The medians of several looks, a second apart."""
    [server] = device.children()
    pids = {"supervisor": device.daemon.pid, "model server": server}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in pids}
    for _ in range(LOOKS):
        time.sleep(1)
        alone = alone_bytes(list(pids.values()))
        for name, pid in pids.items():
            info = psutil.Process(pid).memory_full_info()
            mine = own_bytes(pid)
            seen[name].append({"alone": alone[pid], "own": mine, "pss": info.pss, "rss": info.rss})
    found = {
        name: {kind: round(statistics.median(one[kind] for one in looks) / MB, 1) for kind in KINDS}
        for name, looks in seen.items()
    }
    together = {kind: round(sum(one[kind] for one in found.values()), 1) for kind in KINDS}
    return {**found, "together": together}


def table(measured: Measured) -> str:
    """What was measured, beside the goals, which are for rest."""
    lines = []
    for moment, sizes in measured.sizes.items():
        lines.append(f"{moment:22} {'PSS, alone':>10} {'own':>7} {'PSS here':>10} {'RSS':>8}")
        for name, of in sizes.items():
            line = f"  {name:20} {of['alone']:10.1f} {of['own']:7.1f} {of['pss']:10.1f} {of['rss']:8.1f}"
            if moment == "at rest":
                goal = GOALS_MB[name]
                line += f"   goal {goal:.0f} MB: {'met' if of['alone'] <= goal else 'missed'}"
            lines.append(line)
    for name, (before, after) in (
        ("first", measured.first_ms),
        ("median", measured.median_ms),
    ):
        lines.append(f"{name} of {REQUESTS} requests: {before:.2f} ms, after rest {after:.2f} ms")
    return "\n".join(lines)


def main() -> None:
    """Print what was measured, beside the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("digits", "magika"), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    for model in options.model or ("digits", "magika"):
        with tempfile.TemporaryDirectory(prefix="muster-benchmark-") as folder:
            results[model] = measure(model, Path(folder))
    if options.json:
        found = {model: asdict(one) for model, one in results.items()}
        print(json.dumps({"machine": machine(), "numpy": np.__version__, "models": found}))
        return
    print(machine())
    for model, one in results.items():
        print(f"\n{model}\n{table(one)}")


if __name__ == "__main__":
    main()
