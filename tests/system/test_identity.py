"""Real processes, gRPC alone, certificates on both sides: enrol, run, deploy; then revoked, and serving on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.bundles import tiny_project
from tests.support.daemon import free_port, run, wait_until
from tests.support.fleet import AGENT, FLEET, Device, FleetHost

WAIT_S = 400.0  # for a trial, which gives way to everything else on a busy machine


@dataclass(frozen=True)
class Lab:
    """``said``: what ``fleet-agent enroll`` printed. ``refused``: what ``run`` said before it."""

    host: FleetHost
    device: Device
    said: dict[str, object]
    refused: CompletedProcess[str]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A fleet manager whose devices show certificates, and one device, enrolled, running, known by its reports.

    The tests below are one story in two parts: a device comes in, and is turned out.
    """
    folder = tmp_path_factory.mktemp("secure")
    host = FleetHost(folder / "home", "none")
    host.init()
    enrolment = free_port()
    config = host.home / "fleet.toml"
    secured = config.read_text().replace("[grpc]\n", "[grpc]\ntls = true\n")
    config.write_text(f'{secured}\n[enrolment]\nlisten = "127.0.0.1:{enrolment}"\n')
    run([*FLEET, "tls", "init", "--home", str(host.home)])
    host.start()
    device = Device(host, folder / "device", "cam-1")
    device.write_config()
    text = device.config.read_text().replace("[fleet]\n", "[fleet]\ntls = true\n")
    device.config.write_text(text)
    try:
        refused = run([*AGENT, "run", "--config", str(device.config)], check=False)
        said = enroll(host, device, enrolment)
        device.daemon.start([*AGENT, "run", "--config", str(device.config)])
        device.wait_known(WAIT_S)
        bundle = host.publish(tiny_project(folder, "1.0.0"))
        host.wait_rollout(host.start_rollout(bundle, [(100, 0.5)]), "promoted", WAIT_S)
        yield Lab(host, device, said, refused)
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


def test_enrolled_a_device_got_a_bundle_over_grpc_alone(secure: Lab) -> None:
    host, device, said = secure.host, secure.device, secure.said
    assert secure.refused.returncode == 2
    assert "run `fleet-agent enroll` with a token" in secure.refused.stderr
    assert said["name"] == f"spiffe://{host.name}/class/edge/device/cam-1"
    assert said["not_yet_used"] == ""
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
    host, device = secure.host, secure.device
    host.command("device", "revoke", "cam-1", "--reason", "stolen")
    wait_until(lambda: not host.device("cam-1")["online"], "it is not connected any more", WAIT_S)
    wait_until(
        lambda: "was revoked (stolen)" in device.daemon.tail(200), "the device is told why", WAIT_S
    )
    second = host.publish(tiny_project(tmp_path, "2.0.0"))
    host.start_rollout(second, [(100, 600.0)])
    device.daemon.require_alive()
    assert device.served_version("tiny") == "1.0.0"
    shown = host.command("device", "show", "cam-1").stdout
    assert "revoked: stolen" in shown
