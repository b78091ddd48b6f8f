"""Which devices a rollout is for, and which of those cannot take the bundle, and why. Pure.

Rules kept here: who is meant is decided by the functions the devices use; what a device does not say
(memory 0, no battery) is no obstacle; each device has at most one obstacle, the first that it meets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from agent.bundle import Manifest
from agent.trust import BundleRelease, DeviceFacts, excluded, selects
from agent.trust.versions import version_fits
from fleet.rollout.spec import RolloutSpec, bundle_class

__all__ = ["Candidate", "Obstacle", "Unfit", "gather", "is_meant", "obstacle"]

LOW_BATTERY_PERCENT: Final = 20.0
SAMPLE: Final = 5
_DISK_FACTOR: Final = 2  # pieces while they are fetched, and the slot that is made of them


class Unfit(StrEnum):
    """Why a device cannot take the bundle, or may not."""

    OTHER_CLASS = "other_class"
    EXCLUDED = "excluded"
    HARDWARE = "hardware"
    AGENT_VERSION = "agent_version"
    ONNXRUNTIME_VERSION = "onnxruntime_version"
    MEMORY = "memory"
    DISK = "disk"
    REFUSED_BEFORE = "refused_before"
    BATTERY = "battery"

    @property
    def leaves_out(self) -> bool:
        """Whether such a device is no part of the rollout; the others try, and may fail."""
        return self in (Unfit.OTHER_CLASS, Unfit.EXCLUDED, Unfit.HARDWARE)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device as a plan sees it.

    ``serves`` is the manifest of what it serves of the model; "" when nothing. ``refused`` is true
    when it refused or reverted this very bundle in an earlier rollout. 0 bytes are not known.
    """

    facts: DeviceFacts
    last_seen_s: float
    memory_bytes: int = 0
    disk_free_bytes: int = 0
    battery_percent: float | None = None
    on_battery: bool = False
    serves: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One reason and the devices that meet it; ``text`` says what is needed."""

    why: Unfit
    text: str
    devices: int
    sample: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "why": str(self.why),
            "text": self.text,
            "devices": self.devices,
            "sample": list(self.sample),
            "left_out": self.why.leaves_out,
        }


def is_meant(spec: RolloutSpec, facts: DeviceFacts) -> bool:
    """Whether the device is of the bundle's class, has the labels and is not left out."""
    is_class = facts.device_class == bundle_class(spec.bundle)
    return is_class and selects(spec.selector, facts) and excluded(spec.exclude, facts) is None


def obstacle(
    spec: RolloutSpec, release: BundleRelease, manifest: Manifest | None, device: Candidate
) -> tuple[Unfit, str] | None:
    """The first obstacle of a device that has the labels, with what would be needed; None: it fits."""
    facts = device.facts
    left_out = excluded(spec.exclude, facts)
    if facts.device_class != release.device_class:
        return Unfit.OTHER_CLASS, f"the bundle is for class {release.device_class}"
    if left_out is not None:
        return Unfit.EXCLUDED, f"left out by {left_out[0]}={left_out[1]}"
    if release.hardware and facts.hardware not in release.hardware:
        return Unfit.HARDWARE, f"the bundle runs on {', '.join(release.hardware)} only"
    if not version_fits(facts.agent_version, release.agent):
        return Unfit.AGENT_VERSION, f"the bundle needs an agent {release.agent}"
    if not version_fits(facts.onnxruntime_version, release.onnxruntime):
        return Unfit.ONNXRUNTIME_VERSION, f"the bundle needs onnxruntime {release.onnxruntime}"
    if manifest is not None:
        short = _short_of(manifest, device)
        if short is not None:
            return short
    if device.refused:
        return Unfit.REFUSED_BEFORE, "it refused or reverted this bundle before, and tries again"
    low = device.battery_percent is not None and device.battery_percent < LOW_BATTERY_PERCENT
    if device.on_battery and low:
        return Unfit.BATTERY, f"on battery, with less than {LOW_BATTERY_PERCENT:g} % left"
    return None


def _short_of(manifest: Manifest, device: Candidate) -> tuple[Unfit, str] | None:
    memory = manifest.requirements.memory_bytes
    if 0 < device.memory_bytes < memory:
        return Unfit.MEMORY, f"the bundle needs {_mib(memory)} of memory"
    disk = _DISK_FACTOR * manifest.size_bytes
    if 0 < device.disk_free_bytes < disk:
        return Unfit.DISK, f"fetching and keeping it needs {_mib(disk)} of free disk"
    return None


def gather(found: Sequence[tuple[str, Unfit, str]]) -> tuple[Obstacle, ...]:
    """Obstacles of many devices (id, why, text) put together, most devices first."""
    devices: dict[tuple[Unfit, str], list[str]] = {}
    for device_id, why, text in found:
        devices.setdefault((why, text), []).append(device_id)
    ordered = sorted(devices.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Obstacle(why, text, len(ids), tuple(ids[:SAMPLE])) for (why, text), ids in ordered)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.3g} MiB"
