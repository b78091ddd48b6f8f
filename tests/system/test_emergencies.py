"""What the emergency role says reaches a real device: a bundle is blocked while it serves, speed limits are lifted."""

import json
from collections.abc import Callable

from tests.support.bundles import tiny_project
from tests.support.daemon import wait_until
from tests.support.fleet import Device, FleetHost
from tests.system.conftest import embedded_only

WHY = "it answers nonsense at night"


@embedded_only
def test_a_blocked_bundle_is_left_and_the_fleet_knows_why(
    fleet_host: FleetHost, new_device: Callable[..., Device]
) -> None:
    device = new_device("blocked-1")
    device.start()
    device.wait_known()
    device.wait_serving("tiny", "1.0.0")
    path = fleet_host.publish(tiny_project(device.folder / "bad", "1.1.0"))
    rollout = fleet_host.start_rollout(path, [(100, 0.5)], device=device.id)
    fleet_host.wait_rollout(rollout, "promoted")
    device.wait_serving("tiny", "1.1.0")

    said = fleet_host.command("bundle", "block", path, "--reason", WHY, "--json")
    assert json.loads(said.stdout)["published"] is True
    device.wait_serving("tiny", "1.0.0")
    step = wait_until(lambda: _blocked_step(fleet_host, device.id), "the fleet knows why")
    assert WHY in step["reason"]
    shown = fleet_host.command("device", "show", device.id).stdout
    assert WHY in shown
    listed = json.loads(fleet_host.command("bundle", "blocked", "--json").stdout)
    assert list(listed["blocked"].values()) == [WHY]
    assert WHY in fleet_host.command("bundle", "blocked").stdout

    again = fleet_host.start_rollout(path, [(100, 0.5)], device=device.id)
    fleet_host.wait_outcome(device.id, "refused", again)
    assert device.served_version("tiny") == "1.0.0"
    fleet_host.wait_rollout(again, "rolled_back")

    fleet_host.command("bundle", "unblock", path)
    last = fleet_host.start_rollout(path, [(100, 0.5)], device=device.id)
    fleet_host.wait_rollout(last, "promoted")
    device.wait_serving("tiny", "1.1.0")


def _blocked_step(host: FleetHost, device_id: str) -> dict[str, str] | None:
    steps = host.device(device_id)["deployments"]
    return next((step for step in steps if step["reason_code"] == "blocked"), None)


@embedded_only
def test_a_release_spreads_no_faster_than_it_may_until_that_is_lifted(
    fleet_host: FleetHost, new_device: Callable[..., Device]
) -> None:
    device = new_device("limited-1")
    device.start()
    device.wait_known()
    device.wait_serving("tiny", "1.0.0")
    out = device.folder / "limited-bundle"
    project = tiny_project(device.folder / "limited", "1.2.0")
    fleet_host.command("bundle", "build", str(project), "--out", str(out))
    said = fleet_host.command("bundle", "publish", str(out), "--limits", "1h:50%,1d:100%", "--json")
    path = str(json.loads(said.stdout)["path"])
    assert "speed limits: 1h:50%,1d:100%" in fleet_host.command("bundle", "show", path).stdout

    rollout = fleet_host.start_rollout(path, [(100, 0.5)], device=device.id)
    begun_ms = fleet_host.rollout(rollout)["created_s"] * 1000

    def has_worked_on() -> bool:
        """Three whole windows since: the directive came within a fraction of the first."""
        windows = fleet_host.device(device.id)["windows"]
        return sum(window["start_ms"] > begun_ms for window in windows) >= 3

    wait_until(has_worked_on, "windows of the device since the rollout began")
    assert device.served_version("tiny") == "1.0.0"
    assert fleet_host.rollout(rollout)["state"] == "running"
    fleet_host.command("bundle", "lift-limits", path)
    fleet_host.wait_rollout(rollout, "promoted")
    device.wait_serving("tiny", "1.2.0")
    shown = fleet_host.command("bundle", "blocked").stdout
    assert "limits lifted" in shown
