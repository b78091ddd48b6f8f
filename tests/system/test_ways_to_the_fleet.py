"""A site without a broker is complete with gRPC alone; a broker that stays away is replaced by it while it is away."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import tiny_project
from tests.support.fleet import Device, FleetHost


@pytest.fixture
def started(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[FleetHost, Device]]:
    """A fleet manager with the broker that the test's parameter names, and one device."""
    broker = request.param
    if broker == "mosquitto":
        broker = f"mqtt://{request.getfixturevalue('own_mosquitto').address}"
    host = FleetHost(tmp_path / "home", broker)
    host.init()
    host.start()
    device = Device(host, tmp_path / "device", "device")
    device.start()
    try:
        device.wait_known()
        yield host, device
    finally:
        device.daemon.kill()
        host.stop()


@pytest.mark.parametrize("started", ["none"], indirect=True)
def test_grpc_alone_promotes_and_rolls_back(
    started: tuple[FleetHost, Device], tmp_path: Path
) -> None:
    host, device = started
    first = host.start_rollout(host.publish(tiny_project(tmp_path, "1.0.0")), [(100, 0.5)])
    host.wait_rollout(first, "promoted")
    assert device.served_version("tiny") == "1.0.0"

    path = host.publish(tiny_project(tmp_path, "2.0.0", probation_s=600.0))
    second = host.start_rollout(path, [(100, 600.0)])
    device.wait_serving("tiny", "2.0.0")
    host.post(f"/v1/rollouts/{second}/rollback", {"reason": "test"})

    device.wait_serving("tiny", "1.0.0")
    host.wait_outcome(device.id, "reverted", second)


@pytest.mark.mosquitto
@pytest.mark.parametrize("started", ["mosquitto"], indirect=True)
def test_grpc_stands_in_while_the_broker_is_away(
    started: tuple[FleetHost, Device], tmp_path: Path, own_mosquitto: Any
) -> None:
    host, device = started
    path = host.publish(tiny_project(tmp_path, "1.0.0"))
    own_mosquitto.stop()

    rollout = host.start_rollout(path, [(100, 0.5)])

    host.wait_rollout(rollout, "promoted")
    assert device.served_version("tiny") == "1.0.0"
    device.daemon.require_alive()
    own_mosquitto.start()
    again = host.start_rollout(host.publish(tiny_project(tmp_path, "1.1.0")), [(100, 0.5)])
    host.wait_rollout(again, "promoted")
