"""Processes for tests: started with a log file, killed or ended on purpose, waited for by condition."""

import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
POLL_S = 0.02  # at first; each pause is longer than the one before ...
LONGEST_POLL_S = 0.25  # ... up to this: looking costs the time that what is waited for needs
WAIT_S = 120.0  # costs nothing when all is well, and a busy machine may be ten times slower
PORTS = range(10_000, 32_000)  # Linux gives connections 32768 and above
MOST_PORTS = 1000
_never = threading.Event()
_reserved: list[socket.socket] = []


class GaveUpError(AssertionError):
    """A condition did not come true in time."""


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
    """The first true value of ``condition``; asks again until ``timeout_s`` is over."""
    deadline, pause_s = time.monotonic() + timeout_s, POLL_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise GaveUpError(f"not within {timeout_s:.0f} s: {what}")
        _never.wait(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_POLL_S)


def free_port() -> int:
    """A TCP port on loopback for whoever asks, and for nobody else while this process lives.

    It is below the range from which the kernel takes the ports of connections, and reserved among all test processes
    of the machine by a name (of an abstract socket) that goes with the process: whoever binds it later still finds it
    free, and so does who binds it again.
    """
    for _ in range(MOST_PORTS):
        port = secrets.choice(PORTS)
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0muster-test-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:  # taken by another test or another program: the next one
            name.close()
            continue
        _reserved.append(name)
        return port
    raise GaveUpError(f"no free port in {PORTS} after {MOST_PORTS} tries")


def run(
    command: Sequence[str], *, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; with ``check`` a failure shows what it printed."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=env
    )
    said = f"{command} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not check or done.returncode == 0, said
    return done


@dataclass(slots=True)
class Daemon:
    """A process with a log file, in its own session."""

    log: Path
    process: Any = None

    def start(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        assert not self.alive, "still running"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def require_alive(self) -> None:
        assert self.alive, f"died with {self.process and self.process.returncode}:\n{self.tail()}"

    def tail(self, lines: int = 30) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def kill(self) -> None:
        """SIGKILL the process alone: what it started must notice by itself."""
        if self.alive:
            self.process.kill()
            self.process.wait(WAIT_S)

    def wait_dead(self, timeout_s: float = WAIT_S) -> int:
        try:
            return int(self.process.wait(timeout_s))
        except subprocess.TimeoutExpired:
            raise GaveUpError(f"alive after {timeout_s:.0f} s:\n{self.tail()}") from None

    def terminate(self, timeout_s: float = WAIT_S) -> int:
        """SIGTERM, and the exit code."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        return self.wait_dead(timeout_s)
