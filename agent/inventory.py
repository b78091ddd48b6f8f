"""What kind of device this is: read once at start, reported to the fleet, and what a directive selects by.

Rules kept here:
- Reading never fails and never imports onnxruntime: its version comes from the installed package's metadata.
"""

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata

import psutil

from agent import __version__
from agent.health.telemetry import ServedModel
from agent.trust import DeviceFacts
from protos import report_pb2

__all__ = ["Machine", "agent_version", "installed_version", "read_machine"]


@dataclass(frozen=True, slots=True)
class Machine:
    """This device, as far as it does not change while the agent runs. ``hardware`` is what ``uname -m`` says."""

    device_id: str
    device_class: str
    hardware: str
    labels: Mapping[str, str] = field(default_factory=dict)
    agent_version: str = ""
    onnxruntime_version: str = ""
    memory_bytes: int = 0
    cpu_count: int = 0
    operating_system: str = ""

    def facts(self) -> DeviceFacts:
        """What a directive is decided by."""
        return DeviceFacts(
            device_id=self.device_id,
            device_class=self.device_class,
            hardware=self.hardware,
            labels=self.labels,
            agent_version=self.agent_version,
            onnxruntime_version=self.onnxruntime_version,
        )

    def report(self, active: Iterable[ServedModel], disk_free_bytes: int) -> report_pb2.Inventory:
        """The inventory as the fleet manager gets it."""
        return report_pb2.Inventory(
            device_class=self.device_class,
            hardware=self.hardware,
            labels=dict(self.labels),
            agent_version=self.agent_version,
            onnxruntime_version=self.onnxruntime_version,
            memory_bytes=self.memory_bytes,
            disk_free_bytes=max(disk_free_bytes, 0),
            cpu_count=self.cpu_count,
            operating_system=self.operating_system,
            active=[
                report_pb2.ActiveModel(
                    model=served.model,
                    version=served.version,
                    manifest_sha256=served.manifest_sha256,
                    rollout_id=served.rollout_id,
                )
                for served in active
            ],
        )


def installed_version(distribution: str) -> str:
    """The version of an installed package; "" when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def agent_version() -> str:
    """The version of this agent."""
    return __version__


def read_machine(device_id: str, device_class: str, labels: Mapping[str, str]) -> Machine:
    """This machine."""
    return Machine(
        device_id=device_id,
        device_class=device_class,
        hardware=platform.machine(),
        labels=dict(labels),
        agent_version=agent_version(),
        onnxruntime_version=installed_version("onnxruntime"),
        memory_bytes=_memory_bytes(),
        cpu_count=os.cpu_count() or 0,
        operating_system=_operating_system(),
    )


def _memory_bytes() -> int:
    try:
        return int(psutil.virtual_memory().total)
    except (OSError, psutil.Error):
        return 0


def _operating_system() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        name = ""
    kernel = f"{platform.system()} {platform.release()}"
    return f"{name}, {kernel}"[:128] if name else kernel[:128]
