"""A real fleet manager and a real agent over a Mosquitto with the project's own configuration and mutual TLS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.state_dir import StatePaths
from fleet.home import Home
from tests.support.bundles import tiny_project
from tests.support.certificates_broker import Certificates
from tests.support.daemon import Daemon, free_port, wait_until
from tests.support.fleet import Device, FleetHost
from tests.support.mosquitto import PROGRAM, require_mosquitto

pytestmark = pytest.mark.mosquitto
CONNECTED = "connected to the broker at 127.0.0.1"
LOST = "no connection to the broker at 127.0.0.1"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[FleetHost, Certificates, Daemon]]:
    """A fleet folder with certificates, and the broker that ``fleet broker config`` describes."""
    require_mosquitto()
    assert PROGRAM is not None
    port = free_port()
    host = FleetHost(tmp_path / "home", f"mqtts://127.0.0.1:{port}")
    host.init()
    certificates = Certificates(Home(host.home).pki)
    certificates.write()
    host.command("broker", "config", "--listen", f"127.0.0.1:{port}", "--user", "root")
    broker = Daemon(tmp_path / "mosquitto.log")
    broker.start([PROGRAM, "-c", str(host.home / "broker" / "mosquitto.conf")])
    wait_until(lambda: " running" in broker.tail(), "mosquitto runs")
    host.start()
    try:
        yield host, certificates, broker
    finally:
        host.stop()
        broker.kill()


def test_a_rollout_and_a_revoked_device(
    fleet: tuple[FleetHost, Certificates, Daemon], tmp_path: Path
) -> None:
    host, certificates, broker = fleet
    device = Device(host, tmp_path / "device", "cam-1")
    certificates.enrol(device.id, StatePaths(device.state_dir).identity)
    device.start()

    def log() -> str:
        return device.daemon.log.read_text()

    try:
        wait_until(lambda: CONNECTED in log(), "the agent is on the broker")
        first = host.publish(tiny_project(tmp_path, "1.0.0"))
        rollout = host.start_rollout(first, [(100, 0.5)], device=device.id)
        host.wait_rollout(rollout, "promoted", timeout_s=300.0)
        assert device.served_version("tiny") == "1.0.0"
        before = log()
        connects = host.get("/v1/status")["broker"]["connects"]

        certificates.revoke(device.id)
        host.command("broker", "put-off", device.id)
        wait_until(
            lambda: log().count(LOST) >= before.count(LOST) + 2, "it is put off, and then refused"
        )
        assert log().count(CONNECTED) == before.count(CONNECTED)
        assert device.served_version("tiny") == "1.0.0", "it goes on serving"
        assert host.get("/v1/status")["broker"]["connects"] == connects, "nobody else was cut"
        broker.require_alive()
    finally:
        device.daemon.kill()
