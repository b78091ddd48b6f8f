"""Which device meets which obstacle, and what is fetched."""

from dataclasses import replace
from typing import Any

import pytest

from agent.bundle import BundleFile, Manifest, Piece
from agent.bundle.manifest import Requirements
from agent.trust import BundleRelease, DeviceFacts
from fleet.rollout.fitness import Candidate, Unfit, gather, is_meant, obstacle
from fleet.rollout.wire_bytes import wire_bytes
from tests.fleet.rollout.rollout_builders import BUNDLE, SHA, spec

RELEASE = BundleRelease(
    path=BUNDLE, sha256=SHA, length=100, model="digits", version="2", device_class="cam",
    hardware=("x86_64",), agent=">=1.2", onnxruntime=">=1.20",
)  # fmt: skip


def manifest(version: str, *pieces: tuple[str, int], memory: int = 0) -> Manifest:
    made = tuple(Piece(name * 64, size) for name, size in pieces)
    size = sum(piece.size for piece in made)
    return Manifest(
        model="digits", version=version, device_class="cam", created_s=0,
        files=(BundleFile("m.onnx", size, "f" * 64, made),), stages=(), inputs=(), outputs=(),
        requirements=Requirements(memory_bytes=memory),
    )  # fmt: skip


FACTS = DeviceFacts("cam-1", "cam", "x86_64", {"site": "lab"}, "1.3.0", "1.21.0")
FITS = Candidate(FACTS, 0.0, memory_bytes=1 << 30, disk_free_bytes=1 << 30, battery_percent=10.0)
NEW = manifest("2", ("a", 600_000), ("b", 400_000), memory=1 << 29)


@pytest.mark.parametrize(
    ("facts", "device", "why"),
    [
        ({}, {}, None),
        ({}, {"memory_bytes": 0, "disk_free_bytes": 0}, None),  # not known is no obstacle
        ({"device_class": "edge"}, {}, Unfit.OTHER_CLASS),
        ({"labels": {"site": "roof"}}, {}, Unfit.EXCLUDED),
        ({"hardware": "aarch64"}, {}, Unfit.HARDWARE),
        ({"agent_version": "1.1"}, {}, Unfit.AGENT_VERSION),
        ({"agent_version": ""}, {}, Unfit.AGENT_VERSION),
        ({"onnxruntime_version": "1.19"}, {}, Unfit.ONNXRUNTIME_VERSION),
        ({}, {"memory_bytes": (1 << 29) - 1}, Unfit.MEMORY),
        ({}, {"disk_free_bytes": 1_999_999}, Unfit.DISK),
        ({}, {"refused": True}, Unfit.REFUSED_BEFORE),
        ({}, {"on_battery": True}, Unfit.BATTERY),
        ({}, {"on_battery": True, "battery_percent": 90.0}, None),
        ({}, {"on_battery": True, "battery_percent": None}, None),
    ],
)
def test_obstacles(facts: dict[str, Any], device: dict[str, Any], why: Unfit | None) -> None:
    asked = spec(exclude=(("site", "roof"),))
    met = obstacle(asked, RELEASE, NEW, replace(FITS, facts=replace(FACTS, **facts), **device))
    assert (met[0] if met else None) is why


def test_without_the_manifest_nothing_is_said_about_sizes() -> None:
    assert obstacle(spec(), RELEASE, None, replace(FITS, memory_bytes=1)) is None


def test_who_is_meant() -> None:
    assert is_meant(spec(), FACTS)
    assert is_meant(spec(selector=(("hardware", "x86_64"), ("site", "lab"))), FACTS)
    assert not is_meant(spec(selector=(("id", "cam-2"),)), FACTS)
    assert not is_meant(spec(exclude=(("id", "cam-1"),)), FACTS)
    assert not is_meant(spec(), replace(FACTS, device_class="edge"))


def test_obstacles_are_gathered_most_devices_first() -> None:
    found = [(f"d-{number}", Unfit.DISK, "disk") for number in range(7)]
    few, many = gather([*found, ("e", Unfit.MEMORY, "memory")])[::-1]
    assert (few.why, few.devices, few.sample) == (Unfit.MEMORY, 1, ("e",))
    assert (many.devices, len(many.sample)) == (7, 5)
    assert many.to_json()["left_out"] is False


def test_bytes_are_those_of_the_pieces_a_device_lacks() -> None:
    old = manifest("1", ("a", 600_000), ("c", 1))
    serving = ["old", "old", "", "gone", SHA]
    found = wire_bytes(NEW, SHA, serving, {"old": old, SHA: NEW})
    assert {(f.bundle, f.devices, f.each_bytes) for f in found.fetches} == {
        ("bundles/cam/digits-1", 2, 400_000),
        ("", 2, 1_000_000),
        ("bundles/cam/digits-2", 1, 0),
    }
    assert found.total_bytes == 2_800_000
