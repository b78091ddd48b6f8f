"""The processes of the demonstration: fleet manager, agents, simulator, all started as a user would start them.

Every process gets its own log file in the demo's folder; when one ends before it should, the error quotes its last
lines. ``Processes.stop`` ends them all, politely first.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fleet.errors import ServerError

__all__ = ["FLEET_COMMAND", "Processes", "free_port", "run_fleet", "wait_for_json"]

FLEET_COMMAND: Final = (sys.executable, "-m", "fleet.cli.entry")
# Started by name: the fleet's code imports neither the agent's daemon nor the simulator.
_AGENT_COMMAND: Final = (sys.executable, "-m", "agent.cli")
_SIMULATOR_COMMAND: Final = (sys.executable, "-m", "simulator.entry")
_STOP_TIMEOUT_S: Final = 15.0
_POLL_S: Final = 0.1
_LOG_LINES_QUOTED: Final = 8


@dataclass(slots=True)
class Processes:
    """Children of the demo by name, with logs in ``folder``."""

    folder: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_fleet(self, name: str, *arguments: str) -> None:
        """Start a ``fleet`` command that goes on."""
        self._start(name, (*FLEET_COMMAND, *arguments))

    def start_agent(self, name: str, *arguments: str) -> None:
        """Start a ``fleet-agent`` command that goes on."""
        self._start(name, (*_AGENT_COMMAND, *arguments))

    def start_simulator(self, name: str, *arguments: str) -> None:
        """Start a ``fleet-sim`` command that goes on."""
        self._start(name, (*_SIMULATOR_COMMAND, *arguments))

    def _start(self, name: str, command: Sequence[str]) -> None:
        with self._log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise ServerError when a process has ended that should be running."""
        for name, process in self._running.items():
            code = process.poll()
            if code is not None:
                lines = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()
                raise ServerError(
                    f"{name} ended with code {code}. The end of its log ({self._log(name)}):\n"
                    + "\n".join(lines[-_LOG_LINES_QUOTED:])
                )

    def stop(self) -> None:
        """SIGTERM to all in reverse order of their start, then SIGKILL to what is left of their sessions."""
        ordered = list(reversed(self._running.items()))
        for _, process in ordered:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for _, process in ordered:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._running.clear()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def run_fleet(*arguments: str, home: Path | None = None) -> Any:
    """Run one ``fleet`` command with ``--json``, in the fleet folder ``home`` if given, and return what it printed.

    Raises:
        ServerError: it failed; the message is the command's own.
    """
    env = {**os.environ, **({} if home is None else {"MUSTER_HOME": str(home)})}
    done = subprocess.run(
        [*FLEET_COMMAND, *arguments, "--json"], capture_output=True, text=True, check=False, env=env
    )
    try:
        answer = json.loads(done.stdout) if done.stdout.strip() else {}
    except ValueError:
        answer = {}
    if done.returncode != 0:
        said = answer.get("message") if isinstance(answer, dict) else None
        raise ServerError(f"`fleet {' '.join(arguments)}` failed: {said or done.stderr.strip()}")
    return answer


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_json(path: Path, processes: Processes, timeout_s: float) -> Any:
    """The content of a JSON file that a starting process writes once it is ready."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        processes.check()
        if path.exists():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                pass  # caught in the middle of being written: look again
        time.sleep(_POLL_S)
    raise ServerError(
        f"{path} did not appear within {timeout_s:.0f} s: see the logs in {processes.folder}"
    )
