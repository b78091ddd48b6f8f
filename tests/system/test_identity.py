"""Real processes, gRPC alone, certificates on both sides: enrol, run, deploy; then revoked, and serving on."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import tiny_project
from tests.support.daemon import free_port, run, wait_until
from tests.support.fleet import AGENT, FLEET, Device, FleetHost

Lab = tuple[FleetHost, Device, int]


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Lab]:
    """A fleet manager whose devices show certificates, and a device with a configuration for it, not enrolled."""
    host = FleetHost(tmp_path / "home", "none")
    host.init()
    enrolment = free_port()
    config = host.home / "fleet.toml"
    secured = config.read_text().replace("[grpc]\n", "[grpc]\ntls = true\n")
    config.write_text(f'{secured}\n[enrolment]\nlisten = "127.0.0.1:{enrolment}"\n')
    run([*FLEET, "tls", "init", "--home", str(host.home)])
    host.start()
    device = Device(host, tmp_path / "device", "cam-1")
    device.write_config()
    text = device.config.read_text().replace("[fleet]\n", "[fleet]\ntls = true\n")
    device.config.write_text(text)
    try:
        yield host, device, enrolment
    finally:
        device.daemon.kill()
        host.stop()


def enroll(host: FleetHost, device: Device, enrolment: int) -> dict[str, object]:
    made = host.command("device", "token", "create", device.id, "--class", "edge", "--json")
    token = json.loads(made.stdout)["token"]
    done = run(
        [*AGENT, "enroll", "--config", str(device.config), "--server", f"127.0.0.1:{enrolment}",
         "--token", token, "--json"]
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def launch(device: Device) -> None:
    device.daemon.start([*AGENT, "run", "--config", str(device.config)])


def test_enrolled_a_device_gets_a_bundle_over_grpc_alone(secure: Lab, tmp_path: Path) -> None:
    host, device, enrolment = secure
    refused = run([*AGENT, "run", "--config", str(device.config)], check=False)
    assert refused.returncode == 2
    assert "run `fleet-agent enroll` with a token" in refused.stderr
    said = enroll(host, device, enrolment)
    assert said["name"] == f"spiffe://{host.name}/class/edge/device/cam-1"
    assert said["not_yet_used"] == ""
    launch(device)
    device.wait_known()
    bundle = host.publish(tiny_project(tmp_path, "1.0.0"))
    host.wait_rollout(host.start_rollout(bundle, [(100, 0.5)]), "promoted")
    assert device.served_version("tiny") == "1.0.0"
    shown = host.command("device", "show", "cam-1").stdout
    assert "accepted" in shown
    assert str(said["serial"]) in shown
    assert device.status()["identity"]["serial"] == said["serial"]
    found = run([*AGENT, "doctor", "--config", str(device.config), "--json"], check=False)
    checks = {one["check"]: one for one in json.loads(found.stdout)["findings"]}
    assert checks["identity"]["level"] == "ok"
    assert checks["fleet manager"]["level"] == "ok"


def test_revoked_a_device_is_refused_and_serves_what_it_has(secure: Lab, tmp_path: Path) -> None:
    host, device, enrolment = secure
    enroll(host, device, enrolment)
    launch(device)
    device.wait_known()
    first = host.publish(tiny_project(tmp_path, "1.0.0"))
    host.wait_rollout(host.start_rollout(first, [(100, 0.5)]), "promoted")
    host.command("device", "revoke", "cam-1", "--reason", "stolen")
    wait_until(lambda: not host.device("cam-1")["online"], "it is not connected any more")
    wait_until(lambda: "was revoked (stolen)" in device.daemon.tail(200), "the device is told why")
    second = host.publish(tiny_project(tmp_path, "2.0.0"))
    host.start_rollout(second, [(100, 600.0)])
    device.daemon.require_alive()
    assert device.served_version("tiny") == "1.0.0"
    shown = host.command("device", "show", "cam-1").stdout
    assert "revoked: stolen" in shown
