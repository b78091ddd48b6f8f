"""Options of the demonstration, and the configuration files it writes: short windows, nothing else unusual."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DemoOptions", "agent_toml", "fleet_toml", "scenario_toml"]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """``folder`` None: a temporary one, removed at the end."""

    devices: int = 200
    agents: int = 3
    requests_per_s: float = 40.0
    bake_s: float = 6.0
    steady_s: float = 4.0
    folder: Path | None = None


def fleet_toml() -> str:
    """Every port chosen by the system; ``run.json`` says which."""
    return (
        '[fleet]\nname = "demo"\n\n[http]\nlisten = "127.0.0.1:0"\n\n[grpc]\nlisten = "127.0.0.1:0"\n\n'
        '[broker]\nmode = "embedded"\nlisten = "127.0.0.1:0"\n\n[controller]\ntick_s = 0.5\n'
    )


def agent_toml(
    name: str, folder: Path, home: Path, running: Mapping[str, Any], address: str
) -> str:
    """A real agent of the demo."""
    return (
        f'[device]\nid = "{name}"\nclass = "edge"\nstate_dir = "{folder / name}"\n\n'
        f'[fleet]\nname = "demo"\nroot = "{home / "root.json"}"\n'
        f'grpc = "{running["grpc"]}"\nmqtt = "{running["mqtt"]}"\n\n'
        f'[serving]\nlisten = "{address}"\nhttp = ""\n\n'
        "[telemetry]\nwindow_s = 2.0\ncohort_window_s = 1.0\n"
    )


def scenario_toml(devices: int, broken_version: str, violation_rate: float) -> str:
    """Simulated devices; the broken version misbehaves as it was measured to."""
    return (
        f'[devices]\ncount = {devices}\nclass = "edge"\nramp_s = 3.0\n\n'
        "[run]\nduration_s = 0.0\nwindow_s = 2.0\ncohort_window_s = 1.0\n\n"
        "[traffic]\nrequests_per_s = 20.0\n\n"
        f'[[model]]\nversion = "{broken_version}"\noutput_violation_rate = {violation_rate}\n'
        "latency_ms = 1.0\n\n"
        '[[model]]\nversion = "*"\nlatency_ms = 1.0\n'
    )
