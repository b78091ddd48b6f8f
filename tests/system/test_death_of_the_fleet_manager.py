"""kill -9 of the fleet manager while a device is in each phase: nothing is lost, the rollout goes on.

Its own broker dies with it and Mosquitto does not: some phases are seen with each, the rest with the one.
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.bundles import tiny_project
from tests.support.daemon import wait_until
from tests.support.fleet import Device, FleetHost
from tests.system.conftest import embedded_only

KILLED_FLEET = (sys.executable, "-m", "tests.support.killed_fleet")
PHASES = ("fetch", "verify", "try", "swap", "probation", "commit")
WITH_EACH_BROKER = [("after", "fetch"), ("after", "probation"), ("before", "commit")]
DEATHS = [
    death
    for death in itertools.product(("before", "after"), PHASES)
    if death not in WITH_EACH_BROKER
]


@dataclass
class Mortal:
    """The module's fleet manager, started so that it dies when told to."""

    host: FleetHost
    order: Path

    def start(self) -> None:
        self.host.start(KILLED_FLEET, {"MUSTER_TEST_KILL": f"@{self.order}"})

    def die_at(self, when: str, phase: str) -> None:
        self.order.write_text(f"{when}:{phase}", encoding="utf-8")

    def rise(self) -> None:
        """Wait for the death, and start it again: this time it lives."""
        assert self.host.daemon.wait_dead() == -9, self.host.daemon.tail()
        self.order.unlink()
        self.start()


@pytest.fixture(scope="module")
def mortal(fleet_host: FleetHost, tmp_path_factory: pytest.TempPathFactory) -> Mortal:
    made = Mortal(fleet_host, tmp_path_factory.mktemp("orders") / "order")
    fleet_host.stop()
    made.start()
    return made


@embedded_only
@pytest.mark.parametrize(("when", "phase"), DEATHS)
def test_fleet_manager_killed_while_a_device_updates(
    when: str, phase: str, mortal: Mortal, new_device: Callable[..., Device]
) -> None:
    die_and_go_on(when, phase, mortal, new_device)


@pytest.mark.parametrize(("when", "phase"), WITH_EACH_BROKER)
def test_fleet_manager_killed_while_a_device_updates_with_each_broker(
    when: str, phase: str, mortal: Mortal, new_device: Callable[..., Device]
) -> None:
    die_and_go_on(when, phase, mortal, new_device)


def die_and_go_on(when: str, phase: str, mortal: Mortal, new_device: Callable[..., Device]) -> None:
    fleet_host = mortal.host
    mortal.die_at(when, phase)
    device = new_device(f"boss-{when}-{phase}")
    device.start()
    mortal.rise()

    device.wait_serving("tiny", "1.0.0")
    fleet_host.wait_outcome(device.id, "committed")

    def missing() -> set[str]:
        return {*PHASES} - {event["phase"] for event in fleet_host.device(device.id)["events"]}

    wait_until(lambda: not missing(), "the report of every phase")
    wait_until(lambda: device.status()["spool"]["reports"] <= 2, "the spool is empty again")


@pytest.mark.parametrize("when", ["before", "after"])
def test_fleet_manager_killed_while_a_device_reverts(
    when: str, mortal: Mortal, new_device: Callable[..., Device]
) -> None:
    fleet_host = mortal.host
    device = new_device(f"boss-{when}-revert")
    device.start()
    device.wait_serving("tiny", "1.0.0")
    version = f"8.{['before', 'after'].index(when)}.0"
    path = fleet_host.publish(tiny_project(device.folder, version, probation_s=600.0))
    rollout = fleet_host.start_rollout(path, [(100, 600)], device=device.id)
    device.wait_serving("tiny", version)
    mortal.die_at(when, "revert")

    fleet_host.post(f"/v1/rollouts/{rollout}/rollback", {"reason": "test"})
    mortal.rise()

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
