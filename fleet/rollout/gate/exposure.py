"""Equal exposure: whole minutes of every device, whether it reports every 15 s or every 60 s. Pure.

The score ln(1 + y/p) of a device rises with the number of its events even when nothing changed
(Jensen), and the devices of a stage report four times as often as most of control, so at any moment
more of theirs has arrived: with raw sums a ring that should fail once in a thousand times failed
once in ninety. Rules kept here:

- Windows shorter than ``SHORT_S`` count only from the device's own offset on (uniform in a minute,
  as the phase of a slow device is), to the nearest window: so the first that counts begins at the
  offset on average, whether fast devices all began with the ring or each at its own time. They count
  once a group of them has lasted a minute.
- Longer windows count as they are, if they start at or after the ring's start.
- What has arrived late counts when it arrives. Each window is given once; that is the caller's care
  (reports are unique by boot and sequence number).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fleet.rollout.gate.frames import Arrays, pack, unpack
from fleet.rollout.gate.metrics import Kind, metric_of
from fleet.rollout.gate.ring import BoolArray, Counts, FloatArray, IntArray

__all__ = ["SHORT_S", "SLOW_S", "Exposure", "Windows", "offset_s", "open_exposure"]

SLOW_S: Final = 60.0  # between two reports of a device that is in no comparison
SHORT_S: Final = 45.0
_CLOSED_S: Final = 59.0  # windows end a moment early now and then


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows in the order of arrival: arrays of one length, and ``counts`` of the same.

    ``device`` is the index in the pool; ``start_s`` and ``end_s`` are on the clock of the ring.
    """

    device: IntArray
    start_s: FloatArray
    end_s: FloatArray
    counts: Counts


@dataclass(frozen=True, slots=True)
class Exposure:
    """The sums so far: ``closed`` counts, ``open`` belongs to minutes that are not whole.

    Both have one row a device and the columns of ``_columns``: bad and total of each rate, level
    times seconds and seconds of each level. ``minutes`` counts closed groups and long windows.
    """

    started_s: float
    metrics: tuple[str, ...]
    offsets_s: FloatArray
    open_s: FloatArray
    open: FloatArray
    closed: FloatArray
    minutes: IntArray

    def add(self, windows: Windows) -> "Exposure":
        """These windows as well, in their order; windows before the ring's start count nothing."""
        length_s = windows.end_s - windows.start_s
        short = length_s < SHORT_S
        offset_s = np.maximum(self.offsets_s[windows.device] - length_s / 2, 0.0)
        begins_s = self.started_s + np.where(short, offset_s, 0.0)
        counted = (windows.start_s >= begins_s) & (length_s > 0)
        if not counted.any():
            return self
        values = self._columns(windows)[counted]
        device, length_s, short = windows.device[counted], length_s[counted], short[counted]
        open_s, open_ = self.open_s.copy(), self.open.copy()
        closed, minutes = self.closed.copy(), self.minutes.copy()
        for turn in _turns(device):
            slow = turn[~short[turn]]
            closed[device[slow]] += values[slow]
            minutes[device[slow]] += 1
            fast = turn[short[turn]]
            who = device[fast]
            open_[who] += values[fast]
            open_s[who] += length_s[fast]
            whole = who[open_s[who] >= _CLOSED_S]
            closed[whole] += open_[whole]
            minutes[whole] += 1
            open_[whole] = 0.0
            open_s[whole] = 0.0
        return Exposure(
            self.started_s, self.metrics, self.offsets_s, open_s, open_, closed, minutes
        )

    def counts(self) -> Counts:
        """What has been counted, as a look wants it."""
        bad: dict[str, IntArray] = {}
        total: dict[str, IntArray] = {}
        level: dict[str, FloatArray] = {}
        for number, name in enumerate(self.metrics):
            first, second = self.closed[:, 2 * number], self.closed[:, 2 * number + 1]
            if metric_of(name).kind is Kind.RATE:
                bad[name], total[name] = first.astype(np.int64), second.astype(np.int64)
            else:
                level[name] = np.divide(
                    first, second, out=np.full(len(first), np.nan), where=second > 0
                )
        return Counts(bad, total, level, self.minutes > 0)

    def to_bytes(self) -> bytes:
        """What has been counted, with the minutes that are open."""
        arrays: Arrays = {
            "offsets_s": self.offsets_s,
            "open_s": self.open_s,
            "open": self.open,
            "closed": self.closed,
            "minutes": self.minutes,
        }
        values = {"started_s": self.started_s, "metrics": list(self.metrics)}
        return pack("exposure", values, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Exposure":
        """Raises ValueError: not an exposure of this version, or damaged."""
        values, arrays = unpack("exposure", data)
        return cls(started_s=values["started_s"], metrics=tuple(values["metrics"]), **arrays)

    def _columns(self, windows: Windows) -> FloatArray:
        columns = np.zeros((len(windows.device), 2 * len(self.metrics)))
        length_s = windows.end_s - windows.start_s
        given = windows.counts
        for number, name in enumerate(self.metrics):
            if name in given.bad:
                columns[:, 2 * number] = given.bad[name]
                columns[:, 2 * number + 1] = given.total[name]
            elif name in given.level:
                level = given.level[name]
                has: BoolArray = ~np.isnan(level)
                columns[has, 2 * number] = level[has] * length_s[has]
                columns[has, 2 * number + 1] = length_s[has]
        return columns


def open_exposure(
    seed: bytes, started_s: float, device_ids: Sequence[str], metrics: tuple[str, ...]
) -> Exposure:
    """Nothing counted yet. The arguments are the ring's."""
    devices = len(device_ids)
    shape = (devices, 2 * len(metrics))
    return Exposure(
        started_s=started_s,
        metrics=metrics,
        offsets_s=np.array([offset_s(seed, device_id) for device_id in device_ids]),
        open_s=np.zeros(devices),
        open=np.zeros(shape),
        closed=np.zeros(shape),
        minutes=np.zeros(devices, dtype=np.int64),
    )


def offset_s(seed: bytes, device_id: str) -> float:
    """Where a device's minutes begin after the start of a ring: uniform in 0..60, by hash."""
    digest = hashlib.sha256(b"minute-v1" + seed + device_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * SLOW_S


def _turns(device: IntArray) -> list[IntArray]:
    """Window numbers in turns: the first of each device, then the second of each, and so on."""
    order = np.argsort(device, kind="stable")
    ordered = device[order]
    first = np.searchsorted(ordered, ordered, side="left")
    turn = np.arange(len(order)) - first
    by_turn = np.argsort(turn, kind="stable")
    ends = np.cumsum(np.bincount(turn))[:-1]
    return [np.sort(part) for part in np.split(order[by_turn], ends)]
