"""A closed loop of clients: nghttp2's ``h2load``, a load generator in C, in a process of its own.

Every client has one connection and asks again as soon as it has its answer. A generator in Python takes as much of the
machine as the servers that are measured and brings them nearer to each other; this one takes little. Rules kept here:

- Warming up is a run of its own, so that everything the second run says is of the time that is measured.
- A gRPC answer that is a failure has HTTP's status 200 and no message: bytes of answers are counted against the answer
  that the prepared request has, and what is missing of them has failed.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.wire import Target, ask_once, grpc_frame

__all__ = ["Measured", "NoGenerator", "measure", "require_generator", "summary"]

GENERATOR: Final = "h2load"
_DONE: Final = re.compile(r"^requests: .* (\d+) done, (\d+) succeeded", re.MULTILINE)
_DATA: Final = re.compile(r"^traffic: .* \((\d+)\) data$", re.MULTILINE)


class NoGenerator(SystemExit):
    """The load generator is not installed; the text says how to get it. A program ends with it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One cell of one round. Latencies in milliseconds."""

    per_s: float
    p50_ms: float
    p99_ms: float
    requests: int
    failed: int


def require_generator() -> str:
    """Where the load generator is. Raises NoGenerator, which ends a program with its text."""
    found = shutil.which(GENERATOR)
    if not found:
        raise NoGenerator(
            f"{GENERATOR} is not installed: it comes with nghttp2, "
            "as nghttp2-client (Debian, Ubuntu) or nghttp2 (Fedora, Homebrew)"
        )
    return found


def measure(target: Target, clients: int, warm_s: float, seconds: float, folder: Path) -> Measured:
    """Run the load. ``folder`` takes the request and the log.

    Raises:
        NoGenerator: it is not installed.
        RuntimeError: the run fails, or the server does not answer the prepared request.
    """
    answer = ask_once(target)
    if not answer:
        raise RuntimeError(f"{target.path} on port {target.port} refuses the prepared request")
    grpc = target.kind == "grpc"
    body, log = folder / "load.body", folder / "load.log"
    body.write_bytes(grpc_frame(target.body) if grpc else target.body)
    log.unlink(missing_ok=True)
    _run(target, clients, warm_s, ["--data", str(body)])
    said = _run(target, clients, seconds, ["--data", str(body), f"--log-file={log}"])
    size = len(grpc_frame(answer)) if grpc else len(answer)
    return outcome(said, log.read_text(encoding="ascii"), seconds, size)


def outcome(said: str, log: str, seconds: float, answer_bytes: int) -> Measured:
    """What a run's words and its log come to. Raises RuntimeError for words that are not understood."""
    done, data = _DONE.search(said), _DATA.search(said)
    if done is None or data is None:
        raise RuntimeError(f"{GENERATOR} says something unknown: {said.strip()[-500:]}")
    # The log has a line a request: its start, its status, what it took, both in microseconds.
    took_s = [
        int(took) / 1e6
        for _, status, took in (line.split("\t")[:3] for line in log.splitlines())
        if status == "200"
    ]
    asked, succeeded = int(done[1]), int(done[2])
    whole = int(data[1]) // answer_bytes
    return summary(took_s, seconds, asked - min(succeeded, whole))


def summary(latencies_s: Sequence[float], elapsed_s: float, failed: int) -> Measured:
    """Percentiles of what was answered."""
    ordered = sorted(latencies_s) or [float("nan")]

    def percentile(percent: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000, 4)

    count = len(latencies_s)
    return Measured(
        round(count / elapsed_s, 1), percentile(50), percentile(99), count + failed, failed
    )


def _run(target: Target, clients: int, seconds: float, more: Sequence[str]) -> str:
    """One run's words."""
    headers = list(target.headers)
    if target.kind == "grpc":
        headers += [("content-type", "application/grpc"), ("te", "trailers")]
    command = [
        require_generator(), f"--clients={clients}", "--threads=1", f"--duration={seconds * 1000:.0f}ms",
        *(["--h1"] if target.kind == "rest" else ["--window-bits=30", "--connection-window-bits=30"]),
        *(f"--header={name}: {value}" for name, value in headers),
        *more, f"http://127.0.0.1:{target.port}{target.path}",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if ran.returncode:
        raise RuntimeError(f"{GENERATOR} failed: {(ran.stderr or ran.stdout).strip()[-500:]}")
    return ran.stdout
