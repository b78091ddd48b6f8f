"""kill -9 of the fleet manager while a device is in each phase: nothing is lost, the rollout goes on."""

import sys
from collections.abc import Callable

import pytest

from tests.support.bundles import tiny_project
from tests.support.daemon import wait_until
from tests.support.fleet import Device, FleetHost

KILLED_FLEET = (sys.executable, "-m", "tests.support.killed_fleet")
PHASES = ("fetch", "verify", "try", "swap", "probation", "commit")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_fleet_manager_killed_while_a_device_updates(
    when: str, phase: str, fleet_host: FleetHost, new_device: Callable[..., Device]
) -> None:
    fleet_host.stop()
    fleet_host.launch(KILLED_FLEET, {"MUSTER_TEST_KILL": f"{when}:{phase}"})
    device = new_device(f"boss-{when}-{phase}")
    device.start()
    assert fleet_host.daemon.wait_dead() == -9, fleet_host.daemon.tail()

    fleet_host.start()

    device.wait_serving("tiny", "1.0.0")
    fleet_host.wait_outcome(device.id, "committed")
    phases = [event["phase"] for event in fleet_host.device(device.id)["events"]]
    for name in PHASES:
        assert name in phases, f"the report of {name} was lost: {phases}"
    wait_until(lambda: device.status()["spool"]["reports"] <= 2, "the spool is empty again")


@pytest.mark.parametrize("when", ["before", "after"])
def test_fleet_manager_killed_while_a_device_reverts(
    when: str, fleet_host: FleetHost, new_device: Callable[..., Device]
) -> None:
    device = new_device(f"boss-{when}-revert")
    device.start()
    device.wait_serving("tiny", "1.0.0")
    version = f"8.{['before', 'after'].index(when)}.0"
    path = fleet_host.publish(tiny_project(device.folder, version, probation_s=600.0))
    rollout = fleet_host.start_rollout(path, [(100, 600)], device=device.id)
    device.wait_serving("tiny", version)
    fleet_host.stop()
    fleet_host.launch(KILLED_FLEET, {"MUSTER_TEST_KILL": f"{when}:revert"})
    fleet_host.wait_ready()

    fleet_host.post(f"/v1/rollouts/{rollout}/rollback", {"reason": "test"})
    assert fleet_host.daemon.wait_dead() == -9, fleet_host.daemon.tail()
    fleet_host.start()

    device.wait_serving("tiny", "1.0.0")
    fleet_host.wait_outcome(device.id, "reverted", rollout)
    assert fleet_host.rollout(rollout)["state"] == "rolled_back"


def test_fleet_manager_killed_in_the_middle_of_a_stage_goes_on(
    fleet_host: FleetHost, new_device: Callable[..., Device]
) -> None:
    device = new_device("mid-stage")
    device.start()
    device.wait_serving("tiny", "1.0.0")
    path = fleet_host.publish(tiny_project(device.folder, "1.5.0"))
    rollout = fleet_host.start_rollout(path, [(100, 8.0)], device=device.id)
    before = fleet_host.rollout(rollout)
    assert before["state"] == "running"

    fleet_host.daemon.kill()
    fleet_host.start()

    after = fleet_host.wait_rollout(rollout, "promoted")
    assert after["number"] == before["number"]
    device.wait_serving("tiny", "1.5.0")
    decisions = fleet_host.get(f"/v1/rollouts/{rollout}/decisions")["decisions"]
    actions = [row["action"] for row in decisions]
    assert actions.count("start") == 1
    assert actions.count("promote") == 1
