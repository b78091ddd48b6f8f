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
from agent.ports import ResourceUse
from agent.runtime.providers import CPU
from agent.trust import DeviceFacts
from agent.trust.status import TrustStatus
from protos import report_pb2

__all__ = ["Machine", "agent_version", "installed_version", "provider_name", "read_machine"]


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
    execution_provider: str = "cpu"

    def facts(self, utc_offset_minutes: int = 0) -> DeviceFacts:
        """What a directive is decided by. ``utc_offset_minutes``: what local time is ahead of UTC now."""
        return DeviceFacts(
            device_id=self.device_id,
            device_class=self.device_class,
            hardware=self.hardware,
            labels=self.labels,
            agent_version=self.agent_version,
            onnxruntime_version=self.onnxruntime_version,
            execution_provider=self.execution_provider,
            utc_offset_minutes=utc_offset_minutes,
        )

    def report(
        self,
        active: Iterable[ServedModel],
        use: ResourceUse | None,
        utc_offset_minutes: int = 0,
        trust: TrustStatus | None = None,
    ) -> report_pb2.Inventory:
        """The inventory as the fleet manager gets it. ``use`` None: not known now; the next one says it."""
        return report_pb2.Inventory(
            device_class=self.device_class,
            hardware=self.hardware,
            labels=dict(self.labels),
            agent_version=self.agent_version,
            onnxruntime_version=self.onnxruntime_version,
            memory_bytes=self.memory_bytes,
            disk_free_bytes=max(use.disk_free_bytes, 0) if use is not None else 0,
            cpu_count=self.cpu_count,
            operating_system=self.operating_system,
            execution_provider=self.execution_provider,
            utc_offset_minutes=utc_offset_minutes,
            battery_percent=use.battery_percent if use is not None else None,
            on_battery=use.on_battery if use is not None else False,
            trust=_trust(trust) if trust is not None and trust != TrustStatus() else None,
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


def _trust(status: TrustStatus) -> report_pb2.TrustStatus:
    return report_pb2.TrustStatus(
        refusal_code=status.code,
        refusal=status.text,
        refused_unix_ms=int(status.refused_s * 1000),
        refused=status.refused,
        refusing=status.refusing,
        notices=status.notices,
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


def provider_name(execution_provider: str) -> str:
    """The short name of what models run on, as strata have it: ``CUDAExecutionProvider`` is ``cuda``."""
    return execution_provider.removesuffix("ExecutionProvider").lower()


def read_machine(
    device_id: str, device_class: str, labels: Mapping[str, str], provider: str = CPU
) -> Machine:
    """This machine. ``provider``: the execution provider that models run on first."""
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
        execution_provider=provider_name(provider),
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
