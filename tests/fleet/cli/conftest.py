"""A fleet manager that really listens, in a thread of the test process, with rows in place of devices."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fleet.cli.app import app
from fleet.cli.init import make_home
from fleet.cli.output import console
from fleet.config import parse_config
from fleet.daemon import FleetManager, running
from fleet.home import Home
from tests.fleet.rollout.fleet_rows import Lab
from tests.support.signed_fleet import SignedFleet

CONFIG = """
[http]
listen = "127.0.0.1:0"
[grpc]
listen = "127.0.0.1:0"
[broker]
mode = "none"
[controller]
tick_s = 0.05
"""


class ServedLab(Lab):
    """The lab's rows in the database of a running fleet manager; the time is the real one."""

    def __init__(self, manager: FleetManager) -> None:
        self.manager = manager
        self.home, self.seq, self.packs = manager.home.path, 0, []
        self.store = manager.store
        self.signed = SignedFleet.__new__(SignedFleet)
        self.signed.home, self.signed.manifests = self.home, {}
        self.signed.repository = manager.repository

    @property
    def now_s(self) -> float:  # type: ignore[override]
        return time.time()


@dataclass
class Served:
    """A running fleet manager, and the command line against it."""

    lab: ServedLab
    server: str

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(
            app,
            [*arguments, "--server", self.server],
            env={"COLUMNS": "200", "MUSTER_HOME": str(self.lab.home)},
        )

    @property
    def token(self) -> str:
        """The token of who may read the fleet folder."""
        return Home(self.lab.home).local_token.read_text(encoding="ascii").strip()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(console, "width", 200)  # tables are searched for whole cells
    home = Home(tmp_path / "fleet")
    make_home(home, "lab", time.time())
    started = threading.Event()
    box: dict[str, Any] = {}

    async def live() -> None:
        box["stop"], box["loop"] = asyncio.Event(), asyncio.get_running_loop()
        async with running(home, parse_config(CONFIG)) as manager:
            box["manager"] = manager
            started.set()
            await box["stop"].wait()

    def thread() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            box["error"] = error
            raise
        finally:
            started.set()

    runner = threading.Thread(target=thread, daemon=True)
    runner.start()
    assert started.wait(60)
    assert "error" not in box, box["error"]
    manager = box["manager"]
    yield Served(ServedLab(manager), manager.addresses.to_json()["http"])
    box["loop"].call_soon_threadsafe(box["stop"].set)
    runner.join(90)
    assert not runner.is_alive()


Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def until() -> Until:
    """Wait for something real to happen, up to 90 s."""

    def wait(happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        pause = threading.Event()
        while not happened():
            assert time.monotonic() < deadline, "did not happen within 90 s"
            pause.wait(0.02)

    return wait
