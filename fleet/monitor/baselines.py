"""What each device was like lately: windows added up by the hour in which they arrived.

Rules kept here: added to in the transaction that stores the windows, and only for windows that are
new; the hour is ours, so a device with a wrong clock has a past all the same; a day is a few hours
per device, so that no baseline ever needs the windows themselves; only what answered requests counts
(shadows and arms of a comparison are no one's past).
"""

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Text, cast, delete, select

from fleet.rollout.gate.metrics import METRICS, Kind, metric_of
from fleet.rollout.gate.ring import Counts, FloatArray
from fleet.rollout.sources import (
    COUNTED,
    LEVELS,
    MAX_COUNTERS,
    MAX_OUTPUTS,
    columns_of,
    counters_of,
    rates_of,
)
from fleet.store.tables import baseline_hours
from fleet.store.upsert import insert

__all__ = [
    "BASELINE_HOURS",
    "KEPT_HOURS",
    "Past",
    "add_to_baselines",
    "baselines",
    "past_of",
    "prune_hours",
]

BASELINE_HOURS: Final = 24
KEPT_HOURS: Final = BASELINE_HOURS + 2
OTHERS: Final = "(others)"  # labels and counters beyond those kept apart
_HOUR_S: Final = 3600.0
_WIDTH: Final = len(COUNTED) + 2 * len(LEVELS) + 1
"""Sums of counts; of each level value times seconds, and seconds; the seconds of all windows."""
_PAGE: Final = 500  # devices of one query
_FETCHED: Final = 5000  # rows at once
_NOTHING: Final = "{}"  # as stored: most devices have no labels or no counters to add


@dataclass(slots=True)
class _Hour:
    sums: FloatArray
    outputs: dict[str, int]
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class Past:
    """The past of some devices, in their order: ``sums`` has a row each, zero where nothing is known."""

    device_ids: tuple[str, ...]
    sums: FloatArray
    outputs: tuple[Mapping[str, int], ...]
    counters: tuple[Mapping[str, int], ...]

    @property
    def seconds(self) -> FloatArray:
        """How long the windows of each device were, added up."""
        return self.sums[:, -1]

    def counts(self, names: Sequence[str]) -> Counts:
        """Bad and total of rates and the mean of levels, as baselines are made from.

        Raises:
            KeyError: a metric is not known.
        """
        bad, total = rates_of(names, self.sums, counters_of(names, self.counters))
        levels = [name for name in names if metric_of(name).kind is Kind.LEVEL]
        return Counts(bad, total, {name: self._level(name) for name in levels})

    def _level(self, name: str) -> FloatArray:
        if name in LEVELS:
            place = len(COUNTED) + 2 * list(LEVELS).index(name)
            value, weight = self.sums[:, place], self.sums[:, place + 1]
        elif name == "feedback_abs_error":
            value = self.sums[:, COUNTED.index("feedback_abs_error_sum")]
            weight = self.sums[:, COUNTED.index("feedback_count")]
        else:  # drift from oneself is none, where there is a self
            weight = np.array([float(bool(one)) for one in self.outputs])
            value = np.zeros(len(weight))
        level: FloatArray = np.full(len(value), np.nan)
        np.divide(value, weight, out=level, where=weight > 0)
        return level


def add_to_baselines(
    connection: Connection, rows: Sequence[Mapping[str, Any]], now_s: float
) -> None:
    """Add windows that were stored just now to the hour of ``now_s``."""
    rows = [row for row in rows if row["role"] == ""]
    if not rows:
        return
    hour = int(now_s // _HOUR_S)
    keys = [(row["model"], row["device_id"]) for row in rows]
    stored = _stored(connection, hour, set(keys))
    for key, row, sums in zip(keys, rows, _sums_of(rows), strict=True):
        one = stored.setdefault(key, _Hour(np.zeros(_WIDTH), {}, {}))
        one.sums += sums
        _add(one.outputs, row["output_counts"], MAX_OUTPUTS)
        _add(one.counters, row["counters"], MAX_COUNTERS)
    added = insert(connection, baseline_hours)
    changed = {name: added.excluded[name] for name in ("sums", "outputs", "counters")}
    columns = baseline_hours.c
    key_columns = [columns.hour, columns.model, columns.device_id]
    added = added.on_conflict_do_update(index_elements=key_columns, set_=changed)
    values = [
        {
            "hour": hour,
            "model": model,
            "device_id": device_id,
            "sums": one.sums.astype("<f8").tobytes(),
            "outputs": one.outputs,
            "counters": one.counters,
        }
        for (model, device_id), one in stored.items()
    ]
    connection.execute(added, values)


def past_of(connection: Connection, model: str, device_ids: Sequence[str], now_s: float) -> Past:
    """The last day of these devices with this model, up to now."""
    place = {device_id: number for number, device_id in enumerate(device_ids)}
    sums = np.zeros((len(device_ids), _WIDTH))
    outputs: tuple[dict[str, int], ...] = tuple({} for _ in device_ids)
    counters: tuple[dict[str, int], ...] = tuple({} for _ in device_ids)
    columns = baseline_hours.c
    query = select(
        columns.device_id,
        columns.sums,
        cast(columns.outputs, Text),
        cast(columns.counters, Text),
    ).where(columns.model == model, columns.hour >= int(now_s // _HOUR_S) - BASELINE_HOURS)
    for page in connection.execute(query).partitions(_FETCHED):
        for device_id, body, given, named in page:
            number = place.get(device_id)
            if number is None:
                continue
            sums[number] += np.frombuffer(body, dtype="<f8")
            if given != _NOTHING:
                _add(outputs[number], json.loads(given), MAX_OUTPUTS)
            if named != _NOTHING:
                _add(counters[number], json.loads(named), MAX_COUNTERS)
    return Past(tuple(device_ids), sums, outputs, counters)


def baselines(
    connection: Connection,
    model: str,
    device_ids: Sequence[str],
    now_s: float,
    metrics: Sequence[str] = tuple(METRICS),
) -> Counts:
    """What these devices reported of each metric in the last day, in their order.

    For plans: which changes a stage could see follows from it. All zero (levels nan): no history.

    Raises:
        KeyError: a metric is not known.
    """
    return past_of(connection, model, device_ids, now_s).counts(metrics)


def prune_hours(connection: Connection, now_s: float) -> int:
    """Delete hours that no baseline reads any more; how many."""
    before = int(now_s // _HOUR_S) - KEPT_HOURS
    result = connection.execute(delete(baseline_hours).where(baseline_hours.c.hour < before))
    return int(result.rowcount)


def _sums_of(rows: Sequence[Mapping[str, Any]]) -> FloatArray:
    """What each window adds to ``sums``."""
    columns = columns_of(rows)
    lengths_ms = np.array([row["end_ms"] - row["start_ms"] for row in rows], dtype=np.float64)
    weight = np.maximum(lengths_ms / 1000, 0.0)[:, None]
    level = columns[:, len(COUNTED) :]
    known = ~np.isnan(level)
    sums = np.zeros((len(rows), _WIDTH))
    sums[:, : len(COUNTED)] = columns[:, : len(COUNTED)]
    sums[:, len(COUNTED) : -1 : 2] = np.where(known, level, 0.0) * weight
    sums[:, len(COUNTED) + 1 : -1 : 2] = known * weight
    sums[:, -1:] = weight
    return sums


def _stored(
    connection: Connection, hour: int, keys: AbstractSet[tuple[str, str]]
) -> dict[tuple[str, str], _Hour]:
    columns = baseline_hours.c
    found: dict[tuple[str, str], _Hour] = {}
    for model in sorted({model for model, _ in keys}):
        ids = sorted(device_id for of, device_id in keys if of == model)
        for start in range(0, len(ids), _PAGE):
            query = select(baseline_hours).where(
                columns.hour == hour,
                columns.model == model,
                columns.device_id.in_(ids[start : start + _PAGE]),
            )
            for row in connection.execute(query):
                sums = np.frombuffer(row.sums, dtype="<f8").copy()
                found[model, row.device_id] = _Hour(sums, dict(row.outputs), dict(row.counters))
    return found


def _add(sums: dict[str, int], more: Mapping[str, int], most: int) -> None:
    """Add counts by name; beyond ``most`` names, to the others."""
    for name, count in more.items():
        kept = name if name in sums or len(sums) < most else OTHERS
        sums[kept] = sums.get(kept, 0) + count
