"""What the agent and its model server use of the machine, read from /proc and /sys through psutil.

Rules kept here:
- Reading never fails: what cannot be read is 0 or None, because a missing sensor must not stop telemetry.
- The percentage of CPU is that of one core since the previous reading; the first reading says 0.
"""

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from agent.ports import ResourceUse

__all__ = ["ProcessResources", "disk_free_bytes", "read_battery"]

_THERMAL = Path("/sys/class/thermal")


class ProcessResources:
    """Implements ports.ResourceProbe for this process and one child."""

    def __init__(self, state_dir: Path, server_pid: Callable[[], int | None]) -> None:
        """``server_pid``: the model server's process id now, None when it does not run."""
        self._state_dir = state_dir
        self._server_pid = server_pid
        self._own = psutil.Process()
        self._server: psutil.Process | None = None
        self._cpu_s: dict[int, float] = {}
        self._read_at = time.monotonic()

    def read(self) -> ResourceUse:
        rss = 0
        used = 0.0
        seen: dict[int, float] = {}
        for process in (self._own, self._server_process()):
            if process is None:
                continue
            try:
                times = process.cpu_times()
                rss += process.memory_info().rss
            except psutil.Error:
                continue  # it has just ended; the next reading has its successor
            total = times.user + times.system
            used += max(total - self._cpu_s.get(process.pid, total), 0.0)
            seen[process.pid] = total
        charge, on_battery = read_battery()
        now = time.monotonic()
        span = now - self._read_at
        self._cpu_s, self._read_at = seen, now
        return ResourceUse(
            rss_bytes=rss,
            cpu_percent=round(100 * used / span, 2) if span > 0 else 0.0,
            disk_free_bytes=disk_free_bytes(self._state_dir),
            memory_available_bytes=_memory_available(),
            temperature_c=_temperature_c(),
            battery_percent=charge,
            on_battery=on_battery,
        )

    def _server_process(self) -> psutil.Process | None:
        pid = self._server_pid()
        if pid is None:
            self._server = None
        elif self._server is None or self._server.pid != pid:
            try:
                self._server = psutil.Process(pid)
            except psutil.Error:
                self._server = None
        return self._server


def disk_free_bytes(folder: Path) -> int:
    """Room on the disk of ``folder`` for this user; 0 when it cannot be read."""
    try:
        return int(psutil.disk_usage(str(folder)).free)
    except OSError:
        return 0


def read_battery() -> tuple[float | None, bool]:
    """Charge in percent (None: no battery) and whether the device runs on it now."""
    try:
        battery = psutil.sensors_battery()
    except (OSError, ValueError, AttributeError, psutil.Error):
        # Odd drivers show files that cannot be read, and not every system has this call.
        return None, False
    if battery is None or not 0 <= battery.percent <= 100:
        return None, False
    return float(battery.percent), battery.power_plugged is False


def _memory_available() -> int:
    try:
        return int(psutil.virtual_memory().available)
    except (OSError, psutil.Error):
        return 0


def _temperature_c() -> float | None:
    """The hottest thermal zone, in degrees Celsius; None on a machine without one."""
    hottest: float | None = None
    try:
        zones = sorted(_THERMAL.glob("thermal_zone*/temp"))
    except OSError:
        return None
    for zone in zones:
        try:
            value = int(zone.read_text()) / 1000
        except (OSError, ValueError):
            continue  # a zone that is switched off answers with an error
        if -60 < value < 200 and (hottest is None or value > hottest):
            hottest = value
    return hottest
