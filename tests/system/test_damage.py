"""A corrupted piece, a full disk, a broker that goes away: the device serves what it had and the fleet knows why."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bundles import tiny_project
from tests.support.fleet import Device, FleetHost


def test_piece_corrupted_at_the_server_is_never_served(
    fleet_host: FleetHost, new_device: Callable[..., Device]
) -> None:
    device = new_device("corrupt")
    device.start()
    device.wait_serving("tiny", "1.0.0")
    project = tiny_project(device.folder, "2.0.0")
    path = fleet_host.publish(project)
    damaged = damage_a_piece(fleet_host, device.folder / f"{project.name}-bundle" / "manifest.json")

    rollout = fleet_host.start_rollout(
        path, [(100, 1.0)], device=device.id, max_install_failure_rate=0.01
    )

    told = fleet_host.wait_outcome(device.id, "refused", rollout)
    assert told["reason_code"] == "fetch_damaged"
    assert damaged.name[:12] in told["reason"]
    ended = fleet_host.wait_rollout(rollout, "rolled_back")
    assert "1 refused (fetch_damaged)" in ended["reason"]
    assert device.served_version("tiny") == "1.0.0"


def damage_a_piece(host: FleetHost, manifest: Path) -> Path:
    """Flip a byte of the model's piece in the server's store; returns the piece's file."""
    import json

    files = json.loads(manifest.read_text())["files"]
    digest = next(one for one in files if one["name"].endswith(".onnx"))["pieces"][0]["sha256"]
    (piece,) = [path for path in (host.home / "artifacts").rglob(f"*{digest}*") if path.is_file()]
    data = bytearray(piece.read_bytes())
    data[len(data) // 2] ^= 0xFF
    piece.chmod(0o600)
    piece.write_bytes(bytes(data))
    return Path(digest)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MB; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root, and this is not root")
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "muster-test", str(mount)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("reserve_bytes", [1_000_000, 0], ids=["foreseen", "met"])
def test_full_disk_is_a_refusal_that_the_fleet_knows(
    reserve_bytes: int, fleet_host: FleetHost, new_device: Callable[..., Device], small_disk: Path
) -> None:
    """Foreseen: the space check says no before the download. Met: the disk fills up under the download."""
    device = new_device(
        f"full-{reserve_bytes}",
        state_dir=small_disk / "state",
        extra=f"[update]\nreserve_bytes = {reserve_bytes}\n",
    )
    device.start()
    device.wait_serving("tiny", "1.0.0")
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    ballast.write_bytes(b"\0" * max(0, free - 900_000))
    version = f"3.{reserve_bytes % 7}.0"
    path = fleet_host.publish(tiny_project(device.folder, version, padding_bytes=600_000))

    rollout = fleet_host.start_rollout(
        path, [(100, 1.0)], device=device.id, max_install_failure_rate=0.01
    )

    told = fleet_host.wait_outcome(device.id, "refused", rollout)
    assert told["reason_code"] == "disk_full", told
    fleet_host.wait_rollout(rollout, "rolled_back")
    assert device.served_version("tiny") == "1.0.0"
    device.daemon.require_alive()


def test_broker_that_forgets_everything_is_harmless(
    fleet_host: FleetHost, new_device: Callable[..., Device], request: pytest.FixtureRequest
) -> None:
    device = new_device("forgetful")
    device.start()
    device.wait_serving("tiny", "1.0.0")

    restart_broker(fleet_host, request)
    path = fleet_host.publish(tiny_project(device.folder, "4.0.0"))
    rollout = fleet_host.start_rollout(path, [(100, 1.0)], device=device.id)

    fleet_host.wait_rollout(rollout, "promoted")
    assert device.served_version("tiny") == "4.0.0"


def restart_broker(host: FleetHost, request: pytest.FixtureRequest) -> None:
    """SIGKILL the broker, retained messages and sessions and all, and let it come back."""
    if host.broker == "embedded":
        import psutil

        children = psutil.Process(host.daemon.pid).children(recursive=True)
        (broker,) = [
            one for one in children if "fleet.messaging.embedded" in " ".join(one.cmdline())
        ]
        broker.kill()
        return
    request.getfixturevalue("mosquitto").restart()
