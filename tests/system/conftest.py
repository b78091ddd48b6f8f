"""Fixtures of the system tests: a fleet manager per broker and module, and devices that are ended with the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import tiny_project
from tests.support.fleet import Device, FleetHost

BROKERS = [
    pytest.param("embedded", id="embedded"),
    pytest.param("mosquitto", id="mosquitto", marks=pytest.mark.mosquitto),
]

embedded_only = pytest.mark.parametrize("broker_address", BROKERS[:1], indirect=True)
"""For tests in which the broker makes no difference; those in which it does run with each."""


@pytest.fixture(scope="module", params=BROKERS)
def broker_address(request: pytest.FixtureRequest) -> str:
    """What `fleet serve` is told: its own broker, or a real Mosquitto."""
    if request.param == "embedded":
        return "embedded"
    mosquitto: Any = request.getfixturevalue("mosquitto")
    return f"mqtt://127.0.0.1:{mosquitto.port}"


@pytest.fixture(scope="module")
def fleet_host(
    broker_address: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FleetHost]:
    """A running fleet manager with version 1.0.0 of the model ``tiny`` promoted to everybody."""
    folder = tmp_path_factory.mktemp("fleet")
    host = FleetHost(folder / "home", broker_address, name=folder.name.replace("_", "-"))
    host.init()
    host.start()
    path = host.publish(
        tiny_project(folder, "1.0.0", extra="[requires]\nmemory_bytes = 67_108_864\n")
    )
    first = Device(host, folder / "first", "first")
    first.start()
    try:
        first.wait_known()
        rollout = host.start_rollout(path, [(100, 0.5)])
        host.wait_rollout(rollout, "promoted")
        yield host
    finally:
        first.stop()
        host.stop()


@pytest.fixture
def new_device(fleet_host: FleetHost, tmp_path: Path) -> Iterator[Callable[..., Device]]:
    """Makes devices of the module's fleet; ends them with the test."""
    with ExitStack() as stack:

        def make(device_id: str, **more: Any) -> Device:
            device = Device(fleet_host, tmp_path / device_id, device_id, **more)
            stack.callback(device.daemon.kill)
            return device

        yield make
