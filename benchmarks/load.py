"""``python -m benchmarks.load FILE``: a closed loop of clients in one thread, in a process of its own.

FILE is JSON: a target (``benchmarks.wire.Target``, its body in base64), clients, seconds of warming up and of
measuring. Prints one line of JSON: requests a second, percentiles in milliseconds, failures. Every client asks again
as soon as it has its answer.
"""

import base64
import json
import selectors
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.wire import Connection, Target, connect

__all__ = ["Measured", "measure", "summary"]


@dataclass(frozen=True, slots=True)
class Measured:
    """One cell of one round. Latencies in milliseconds."""

    per_s: float
    p50_ms: float
    p99_ms: float
    requests: int
    failed: int


def measure(target: Target, clients: int, warm_s: float, seconds: float, folder: Path) -> Measured:
    """Run the load in a process of its own. Raises RuntimeError when that fails."""
    asked = folder / "load.json"
    described = {**asdict(target), "body": base64.b64encode(target.body).decode()}
    asked.write_text(
        json.dumps({"target": described, "clients": clients, "warm_s": warm_s, "seconds": seconds})
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", str(asked)],
        capture_output=True,
        text=True,
        check=False,
        timeout=warm_s + seconds + 60,
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr.strip()[-500:]}")
    return Measured(**json.loads(done.stdout))


def summary(latencies_s: list[float], elapsed_s: float, failed: int) -> Measured:
    """Percentiles of what was answered."""
    ordered = sorted(latencies_s) or [float("nan")]

    def percentile(percent: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000, 4)

    count = len(latencies_s)
    return Measured(
        round(count / elapsed_s, 1), percentile(50), percentile(99), count + failed, failed
    )


def run(target: Target, clients: int, warm_s: float, seconds: float) -> Measured:
    """The closed loop, in this thread."""
    selector = selectors.EpollSelector()
    started: dict[Connection, float] = {}
    for _ in range(clients):
        connection = connect(target)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        started[connection] = time.perf_counter()
        connection.send()
    begin_s = time.perf_counter() + warm_s
    end_s = begin_s + seconds
    latencies: list[float] = []
    failed = 0
    now_s = 0.0
    while now_s < end_s:
        for key, _ in selector.select(1.0):
            connection = key.data
            body = connection.receive()
            if body is None:
                continue
            now_s = time.perf_counter()
            if begin_s <= now_s < end_s:
                if body:
                    latencies.append(now_s - started[connection])
                else:
                    failed += 1
            started[connection] = time.perf_counter()
            connection.send()
        now_s = time.perf_counter()
    return summary(latencies, seconds, failed)


def main() -> None:
    """Run what FILE describes."""
    asked: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    described = asked["target"]
    target = Target(
        described["kind"],
        described["port"],
        base64.b64decode(described["body"]),
        described["path"],
        tuple((name, value) for name, value in described["headers"]),
    )
    print(json.dumps(asdict(run(target, asked["clients"], asked["warm_s"], asked["seconds"]))))


if __name__ == "__main__":
    main()
