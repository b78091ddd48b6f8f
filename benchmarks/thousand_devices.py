"""One rollout over many simulated devices on the real wire: ``python -m benchmarks.thousand_devices [--devices N]``.

A real ``fleet serve`` with its embedded broker, one ``fleet-sim run`` process, one bundle of 300 KB to 100 %, a second
one in stages of 10, 50 and 100 %. Prints a table, or JSON with ``--json``.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.support.bundles import tiny_project
from tests.support.daemon import Daemon, wait_until
from tests.support.fleet import FleetHost

SCENARIO = """\
[devices]
count = {devices}
ramp_s = 10.0

[run]
window_s = 10.0
cohort_window_s = 5.0

[traffic]
requests_per_s = 5.0
"""


def measure(devices: int, folder: Path) -> dict[str, Any]:
    """Run it once; seconds, bytes and shares of a core."""
    host = FleetHost(folder / "home")
    host.init()
    host.start()
    simulator = Daemon(folder / "sim.log")
    try:
        scenario = folder / "scenario.toml"
        scenario.write_text(SCENARIO.format(devices=devices), encoding="utf-8")
        began = time.monotonic()
        simulator.start(
            [
                sys.executable,
                "-m",
                "simulator.entry",
                "run",
                str(scenario),
                "--home",
                str(host.home),
            ]
        )
        wait_until(lambda: known(host) >= devices, "all devices said hello", 120)
        joined_s = time.monotonic() - began
        first = roll_out(host, folder, "1.0.0", [(100, 3.0)], devices)
        second = roll_out(host, folder, "2.0.0", [(10, 3.0), (50, 3.0), (100, 3.0)], devices)
        used = memory_and_cpu(host, simulator)
        pack = host.home / "repository"
        return {
            "devices": devices,
            "joined_s": round(joined_s, 1),
            "first_rollout": first,
            "staged_rollout": second,
            "stage_change_bytes": pack_bytes(host),
            **used,
            "repository_bytes": sum(one.stat().st_size for one in pack.rglob("*") if one.is_file()),
        }
    finally:
        simulator.kill()
        host.stop()


def known(host: FleetHost) -> int:
    return len(host.get("/v1/devices")["devices"])


def roll_out(
    host: FleetHost, folder: Path, version: str, stages: list[tuple[float, float]], devices: int
) -> dict[str, float]:
    """Publish and roll out one bundle; seconds until every device has committed, and until it is promoted."""
    path = host.publish(tiny_project(folder, version, padding_bytes=300_000))
    began = time.monotonic()
    rollout = host.start_rollout(path, stages, min_installs=10)

    def committed() -> bool:
        rows = host.get(f"/v1/rollouts/{rollout}/deployments")["deployments"]
        return sum(row["outcome"] == "committed" for row in rows) >= devices

    wait_until(committed, "all devices committed", 300)
    committed_s = time.monotonic() - began
    host.wait_rollout(rollout, "promoted", 120)
    promoted_s = time.monotonic() - began
    return {"committed_s": round(committed_s, 1), "promoted_s": round(promoted_s, 1)}


def memory_and_cpu(host: FleetHost, simulator: Daemon) -> dict[str, Any]:
    """Resident memory in MB and processor seconds of each process."""
    fleet = psutil.Process(host.daemon.pid)
    (broker,) = [one for one in fleet.children() if "fleet.messaging" in " ".join(one.cmdline())]
    named = {"fleet": fleet, "broker": broker, "simulator": psutil.Process(simulator.pid)}
    found = {}
    for name, process in named.items():
        cpu = process.cpu_times()
        found[f"{name}_rss_mb"] = round(process.memory_info().rss / 1e6, 1)
        found[f"{name}_cpu_s"] = round(cpu.user + cpu.system, 1)
    return found


def pack_bytes(host: FleetHost) -> int:
    """Size of the message that a stage change is: the files of the pack, compressed."""
    folder = host.home / "repository" / "metadata"
    newest = [max(folder.glob(f"*.{role}.json"), key=number) for role in ("snapshot", "rollout")]
    files = [folder / "timestamp.json", *newest]
    return len(gzip.compress(b"".join(one.read_bytes() for one in files)))


def number(path: Path) -> int:
    return int(path.name.split(".")[0])


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muster-benchmark-") as folder:
        result = measure(options.devices, Path(folder))
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
