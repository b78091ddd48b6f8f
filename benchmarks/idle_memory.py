"""Memory of an idle agent with one small model: ``python -m benchmarks.idle_memory [--model digits|magika] [--json]``.

A real fleet manager brings the model to a real agent; a few requests are asked; then the fleet manager is stopped and
the agent's two processes are looked at in peace. Shown is PSS as it would be were they alone on the machine, as on a
device: what a process has for itself, and of each mapped file its resident part, halved where the other one maps it
too. The kernel's own PSS, shown beside it, is less wherever anything else here uses the same Python or libraries.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.memory import alone_bytes
from benchmarks.serving import machine
from tests.support.bundles import digits_data, digits_project, magika_features, magika_project
from tests.support.fleet import Device, FleetHost
from tests.support.hammer import Hammer

REQUESTS: Final = 200
REST_S: Final = 5.0
LOOKS: Final = 5
MB: Final = 1e6
KINDS: Final = ("alone", "pss", "rss")
GOALS_MB: Final = {"supervisor": 45.0, "model server": 85.0, "together": 120.0}


def measure(model: str, folder: Path) -> dict[str, dict[str, float]]:
    """In MB, PSS as if alone, PSS and RSS of each process, by its name, and of both together."""
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
        hammer = Hammer(device.address, model, inputs)
        hammer.wait_for_more(REQUESTS)
        hammer.stop()
        host.stop()
        return look(device)
    finally:
        device.stop()
        host.stop()


def look(device: Device) -> dict[str, dict[str, float]]:
    """The medians of several looks, a second apart, after a rest."""
    [server] = device.children()
    pids = {"supervisor": device.daemon.pid, "model server": server}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in pids}
    time.sleep(REST_S)
    for _ in range(LOOKS):
        time.sleep(1)
        alone = alone_bytes(list(pids.values()))
        for name, pid in pids.items():
            info = psutil.Process(pid).memory_full_info()
            seen[name].append({"alone": alone[pid], "pss": info.pss, "rss": info.rss})
    found = {
        name: {kind: round(statistics.median(one[kind] for one in looks) / MB, 1) for kind in KINDS}
        for name, looks in seen.items()
    }
    together = {kind: round(sum(one[kind] for one in found.values()), 1) for kind in KINDS}
    return {**found, "together": together}


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
        print(json.dumps({"machine": machine(), "numpy": np.__version__, "models": results}))
        return
    print(machine())
    for model, found in results.items():
        print(f"\n{model:14} {'PSS, alone':>10} {'PSS here':>10} {'RSS':>8}   goal, MB")
        for name, sizes in found.items():
            goal = GOALS_MB[name]
            print(
                f"{name:14} {sizes['alone']:10.1f} {sizes['pss']:10.1f} {sizes['rss']:8.1f}   "
                f"{goal:.0f}: {'met' if sizes['alone'] <= goal else 'missed'}"
            )


if __name__ == "__main__":
    main()
