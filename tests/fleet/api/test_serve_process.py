"""`fleet init` and `fleet serve` as a user starts them: addresses, run.json, signals, one at a time."""

import asyncio
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from click.testing import Result
from sqlalchemy import text
from typer.testing import CliRunner

from fleet.cli.app import app
from fleet.cli.serve import _overridden
from fleet.config import BrokerConfig, FleetConfig
from fleet.daemon import running
from fleet.errors import ConfigError
from fleet.home import Home
from fleet.messaging import MqttClient
from fleet.store import open_store
from protos import device_pb2, topics
from tests.support.daemon import Daemon, run, wait_until
from tests.support.ephemeral import CONFIG
from tests.support.reports import batch, window

FLEET = (sys.executable, "-m", "fleet.cli.entry")
FREE = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--mqtt", "127.0.0.1:0")
TIMEOUT_S = 90.0


@pytest.fixture
def daemon(home: Home, tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path / "serve.log")
    yield one
    one.kill()


def start(daemon: Daemon, home: Home, *more: str, **env: str) -> dict[str, Any]:
    """Start `fleet serve` and return its run.json."""
    daemon.start([*FLEET, "serve", "--home", str(home.path), *FREE, *more], env)

    def written() -> Any:
        daemon.require_alive()
        return home.run_file.exists() and json.loads(home.run_file.read_text())

    found: dict[str, Any] = wait_until(written, "run.json")
    return found


def get(said: dict[str, Any], path: str) -> httpx.Response:
    """Ask the fleet manager of a run.json."""
    headers = {"authorization": f"Bearer {said['token']}"}
    return httpx.get(f"{said['http']}{path}", timeout=TIMEOUT_S, headers=headers)


def refused(*arguments: str) -> Result:
    """A command that ends by itself, in this process: a start of Python for each would cost most of a test."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code in {1, 2}, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_it_serves_and_ends_politely(daemon: Daemon, home: Home) -> None:
    said = start(daemon, home)
    assert said["fleet"] == "lab"
    assert said["pid"] == daemon.pid
    assert Path(said["root"]).read_bytes() == home.root.read_bytes()
    status = get(said, "/v1/status").json()
    assert status["broker"]["mode"] == "embedded"
    assert status["broker"]["connected"]
    process = psutil.Process(daemon.pid)
    children = process.children(recursive=True)
    assert len(children) == 1  # the broker
    for one in (process, *children):
        for connection in one.net_connections("tcp"):
            assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1", connection
    assert daemon.terminate() == 0
    assert not home.run_file.exists()
    assert not any(child.is_running() for child in children)
    log = daemon.tail()
    assert "Muster fleet manager: fleet lab" in log
    assert said["http"] in log
    assert "ERROR" not in log
    assert "fork" not in log
    assert "Traceback" not in log


def test_a_second_one_on_the_same_folder_is_refused(daemon: Daemon, home: Home) -> None:
    start(daemon, home)
    done = run([*FLEET, "serve", "--home", str(home.path), *FREE], check=False)
    assert done.returncode == 2
    assert "a fleet manager already runs in" in " ".join(done.stderr.split())
    assert home.run_file.exists()
    assert get(json.loads(home.run_file.read_text()), "/v1/status").is_success


def test_after_sigkill_it_starts_again_with_everything(daemon: Daemon, home: Home) -> None:
    start(daemon, home)
    children = psutil.Process(daemon.pid).children()
    daemon.kill()
    assert home.run_file.exists()
    wait_until(lambda: not any(one.is_running() for one in children), "the broker ends too")
    home.run_file.unlink()
    said = start(daemon, home)
    assert get(said, "/v1/status").json()["fleet"] == "lab"


def test_a_port_in_use_is_told(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for option, key in (("--http", "http"), ("--grpc", "grpc"), ("--mqtt", "broker")):
            flags = [*FREE]
            flags[flags.index(option) + 1] = address
            done = refused("serve", "--home", str(home.path), *flags)
            said = " ".join(done.stderr.split())
            assert f"cannot listen on {address}" in said
            assert f"[{key}] listen" in said
            assert "Traceback" not in said
    assert not home.run_file.exists()


def test_addresses_beyond_this_machine_are_refused(home: Home) -> None:
    done = refused("serve", "--home", str(home.path), "--http", "0.0.0.0:0")
    assert done.exit_code == 2
    assert "not a loopback address" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"grpc": "example.com:1"}, "not a loopback address"),
        ({"mqtt": "192.168.0.1:1"}, "not a loopback address"),
        ({"broker": "mqtt://10.0.0.1:1883"}, "not a loopback address"),
        ({"broker": "rabbit"}, "use"),
        ({"http": "8470"}, "use HOST:PORT"),
    ],
)
def test_flags_are_checked_like_the_file(flags: dict[str, str], text: str) -> None:
    said = {"broker": "", "http": "", "grpc": "", "mqtt": "", **flags}
    with pytest.raises(ConfigError, match=text):
        _overridden(FleetConfig(), **said)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    done = run([*FLEET, "serve", "--home", str(tmp_path / "nothing")], check=False)
    assert done.returncode == 2
    assert "`fleet init` makes a fleet folder" in " ".join(done.stderr.split())


def test_init_twice_and_bad_names(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    assert json.loads(run([*FLEET, "init", str(folder), "--json"]).stdout)["name"] == "fleet"
    keys = folder / "keys"
    assert all(path.stat().st_mode & 0o77 == 0 for path in keys.iterdir())
    again = refused("init", str(folder))
    assert again.exit_code == 1
    assert "is a fleet folder already" in " ".join(again.stderr.split())
    bad = refused("init", str(tmp_path / "x"), "--name", "No/Name")
    assert bad.exit_code == 2
    assert not (tmp_path / "x").exists()


def test_systemd_is_told(daemon: Daemon, home: Home, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(TIMEOUT_S)
        start(daemon, home, "--broker", "none", NOTIFY_SOCKET=path, WATCHDOG_USEC="200000")
        heard: list[str] = []
        while not (any("READY=1" in one for one in heard) and heard.count("WATCHDOG=1") > 1):
            heard.append(listener.recv(4096).decode())
        os.kill(daemon.pid, signal.SIGINT)
        while "STOPPING=1" not in heard:
            heard.append(listener.recv(4096).decode())
        assert daemon.wait_dead() == 0


def test_json_logs_are_json(daemon: Daemon, home: Home) -> None:
    start(daemon, home, "--json-logs")
    assert daemon.terminate() == 0
    lines = [one for one in daemon.tail(100).splitlines() if one.startswith("{")]
    assert any(json.loads(one)["message"] == "stopping" for one in lines)


# --- in this process, over a broker -----------------------------------------------------------------


@asynccontextmanager
async def serving(home: Home, mode: str) -> AsyncIterator[Any]:
    broker = BrokerConfig(mode, "127.0.0.1:0")
    async with running(home, dataclasses.replace(CONFIG, broker=broker)) as manager:
        yield manager


async def exchange(manager: Any) -> None:
    """A device reports over the broker, is acknowledged, and finds the pack retained."""
    mqtt = manager.addresses.mqtt
    client = await MqttClient.connect(mqtt.host, mqtt.port, "lab-d1")
    await client.subscribe(topics.request("lab", "d1"))
    await client.publish(topics.report("lab", "d1"), batch(window()).SerializeToString())
    async with asyncio.timeout(TIMEOUT_S):
        message = await anext(client.messages())
        assert device_pb2.Downlink.FromString(message.payload).ack.ids[0].seq == 1
        await client.subscribe(topics.pack("lab"))
        message = await anext(client.messages())
    assert (message.payload, message.retain) == (manager.feed.pack, True)
    await client.close()


async def test_over_the_embedded_broker_and_after_its_death(home: Home) -> None:
    async with serving(home, "embedded") as manager:
        await exchange(manager)
        os.kill(manager.broker.pid, signal.SIGKILL)
        async with asyncio.timeout(TIMEOUT_S):
            while manager.bridge.connects < 2 or not manager.bridge.connected:
                await asyncio.sleep(0.02)
        await exchange(manager)


@pytest.mark.mosquitto
async def test_over_mosquitto(home: Home, own_mosquitto: Any) -> None:
    async with serving(home, f"mqtt://{own_mosquitto.address}") as manager:
        assert manager.addresses.to_json()["mqtt"] == own_mosquitto.address
        await exchange(manager)


async def test_without_its_broker_the_fleet_manager_starts_all_the_same(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.daemon.BROKER_WAIT_S", 0.1)
    async with (
        serving(home, "mqtt://127.0.0.1:1") as manager,
        httpx.AsyncClient(timeout=TIMEOUT_S) as client,
    ):
        client.headers["authorization"] = f"Bearer {home.local_token.read_text().strip()}"
        status = (await client.get(f"http://{manager.addresses.http}/v1/status")).json()
    assert status["broker"]["connected"] is False


async def test_a_part_that_ends_ends_the_process(home: Home) -> None:
    async with serving(home, "none") as manager:
        for task in manager._tasks:
            if task.get_name() == "ingest":
                task.cancel()
        with pytest.raises(Exception, match="ingest"):
            async with asyncio.timeout(TIMEOUT_S):
                await manager.until_ended()


async def test_a_newer_database_stops_the_start(home: Home) -> None:
    store = open_store(home.database)
    with store.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(ConfigError, match="Upgrade Muster"):
        async with serving(home, "none"):
            pass
