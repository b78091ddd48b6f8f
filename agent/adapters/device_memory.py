"""The memory of this device, as swaps must know it.

Rules kept here:
- What may still be had is the least of what the system has and what the agent's own control group
  allows: a service with MemoryMax is killed long before the machine is full.
- What cannot be read is unknown, not zero and not plenty.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from agent.adapters.measured import MeasuredStore

__all__ = ["DeviceMemory"]

_GROUPS: Final = Path("/sys/fs/cgroup")
_OWN_GROUP: Final = Path("/proc/self/cgroup")


class DeviceMemory:
    """Implements ``ports.SwapMemory``."""

    def __init__(
        self, store: MeasuredStore, groups: Path = _GROUPS, own_group: Path = _OWN_GROUP
    ) -> None:
        self._store = store
        self._groups = groups
        self._own_group = own_group

    def available_bytes(self) -> int | None:
        found = [self._system(), *self._allowed()]
        known = [size for size in found if size is not None]
        return min(known) if known else None

    def model_bytes(self, manifest_sha256: str) -> int | None:
        return self._store.model_bytes(manifest_sha256)

    def keep_swap(self, manifest_sha256: str, plan: Mapping[str, Any]) -> None:
        self._store.keep_swap(manifest_sha256, plan)

    def _system(self) -> int | None:
        try:
            return int(psutil.virtual_memory().available)
        except (OSError, psutil.Error):
            return None

    def _allowed(self) -> list[int]:
        """Room in the agent's control group (version 2) and each above it that has a limit."""
        try:
            lines = self._own_group.read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            return []
        own = next((line[3:] for line in lines if line.startswith("0::/")), None)
        if own is None:
            return []
        rooms = []
        folder = self._groups / own.lstrip("/")
        while True:
            room = _room(folder)
            if room is not None:
                rooms.append(room)
            if folder == self._groups or self._groups not in folder.parents:
                return rooms
            folder = folder.parent


def _room(folder: Path) -> int | None:
    """What a group may still take; pages of files that nobody waits for count as free."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        stat = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        idle = next((int(line.split()[1]) for line in stat if line.startswith("inactive_file ")), 0)
        return max(0, int(limit) - used + idle)
    except (OSError, ValueError, IndexError):
        return None
