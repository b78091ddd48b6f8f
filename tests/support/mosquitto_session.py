"""A real Mosquitto as a fixture: one for the session, or one that a test may stop and start."""

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import free_port, wait_until
from tests.support.mosquitto import PROGRAM, require_mosquitto

CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 100
max_queued_messages 100000
log_dest stderr
log_type error
log_type warning
"""


@dataclass(slots=True)
class MosquittoProcess:
    """One broker process; started again it keeps its port and has forgotten every message."""

    program: str
    folder: Path
    port: int = field(default_factory=free_port)
    process: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        config = self.folder / "mosquitto.conf"
        config.write_text(CONFIG.format(port=self.port), encoding="utf-8")
        with (self.folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, "-c", str(config)], stdout=log, stderr=log
            )
        wait_until(self._ready, f"mosquitto on {self.address}")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "mosquitto.log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[MosquittoProcess]:
    """A running Mosquitto shared by the whole session; use topics of your own."""
    yield from _running()


@pytest.fixture
def own_mosquitto() -> Iterator[MosquittoProcess]:
    """A Mosquitto that a test may stop and start."""
    yield from _running()


def _running() -> Iterator[MosquittoProcess]:
    require_mosquitto()
    assert PROGRAM is not None
    # Not pytest's own folder: Mosquitto drops root for a user who may not enter that.
    with tempfile.TemporaryDirectory(prefix="muster-mosquitto-") as folder:
        Path(folder).chmod(0o755)
        broker = MosquittoProcess(PROGRAM, Path(folder))
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()
