"""What the devices were like before a rollout: taken once, when its first stage begins, and kept.

Rules kept here: the windows of the rollout itself are no part of it; later stages use the same
history, whatever the hourly sums say by then; a device that was unknown then has none.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sqlalchemy import Connection, func, select

from fleet.errors import ServerError
from fleet.monitor.baselines import past_of
from fleet.rollout.gate.binary import LEAST_BUDGET, failure_budget
from fleet.rollout.gate.frames import Arrays, pack, unpack
from fleet.rollout.gate.ring import Counts, FloatArray, IntArray
from fleet.rollout.outcomes import KINDS, SILENCE, kind_of_failure
from fleet.rollout.record import Rollout
from fleet.rollout.sources import DRIFT
from fleet.rollout.states import State
from fleet.store.tables import deployments, histories, rollouts
from fleet.store.upsert import insert

__all__ = ["MAX_LABELS", "History", "failure_budgets", "history_of", "keep_history"]

MAX_LABELS: Final = 32  # a window has no more
_MOST_PAST: Final = 20  # rollouts of the model that failure budgets are made from, the newest


@dataclass(frozen=True, slots=True)
class History:
    """Counts and answers per device, in the order of ``device_ids`` (sorted)."""

    device_ids: tuple[str, ...]
    counts: Counts
    seconds: FloatArray
    labels: tuple[str, ...]
    outputs: IntArray

    def of(self, device_ids: Sequence[str]) -> "History":
        """The same for these devices, in their order; nothing for one that was not known."""
        place = {device_id: number for number, device_id in enumerate(self.device_ids)}
        at = np.array([place.get(device_id, -1) for device_id in device_ids], dtype=np.int64)
        known = at >= 0

        def taken(values: IntArray) -> IntArray:
            return np.where(known, values[at], 0) if len(values) else np.zeros(len(at), np.int64)

        def level(values: FloatArray) -> FloatArray:
            nothing = np.full(len(at), np.nan)
            return np.where(known, values[at], nothing) if len(values) else nothing

        outputs = np.zeros((len(at), len(self.labels)), dtype=np.int64)
        outputs[known] = self.outputs[at[known]]
        seconds = np.zeros(len(at))
        seconds[known] = self.seconds[at[known]]
        counts = Counts(
            {name: taken(values) for name, values in self.counts.bad.items()},
            {name: taken(values) for name, values in self.counts.total.items()},
            {name: level(values) for name, values in self.counts.level.items()},
        )
        return History(tuple(device_ids), counts, seconds, self.labels, outputs)

    def to_bytes(self) -> bytes:
        """As stored."""
        counts = np.frombuffer(self.counts.to_bytes(), dtype=np.uint8)
        arrays: Arrays = {"counts": counts, "seconds": self.seconds, "outputs": self.outputs}
        values = {"device_ids": list(self.device_ids), "labels": list(self.labels)}
        return zlib.compress(pack("history", values, arrays), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> "History":
        """Raises ValueError: not a history of this version, or damaged."""
        try:
            framed = zlib.decompress(data)
        except zlib.error as error:
            raise ValueError(f"the stored history is damaged: {error}") from error
        values, arrays = unpack("history", framed)
        return cls(
            tuple(values["device_ids"]),
            Counts.from_bytes(arrays["counts"].tobytes()),
            arrays["seconds"],
            tuple(values["labels"]),
            arrays["outputs"],
        )


def history_of(
    connection: Connection, rollout: Rollout, device_ids: Sequence[str], now_s: float
) -> History:
    """The history of a rollout: as it is stored, or as it is now while none is.

    Raises:
        ServerError: what is stored is damaged or of another version.
    """
    body = connection.scalar(select(histories.c.body).where(histories.c.rollout_id == rollout.id))
    if body is not None:
        try:
            return History.from_bytes(body)
        except ValueError as error:
            raise ServerError(
                f"the history of rollout {rollout.id} cannot be read: {error}. End it, and start it "
                "again"
            ) from error
    names = tuple(name for name, _ in rollout.spec.guards.metrics)
    past = past_of(connection, rollout.model, sorted(device_ids), now_s)
    labels = _labels(past.outputs) if DRIFT in names else ()
    outputs = np.array(
        [[one.get(label, 0) for label in labels] for one in past.outputs], dtype=np.int64
    ).reshape(len(past.device_ids), len(labels))
    return History(past.device_ids, past.counts(names), past.seconds, labels, outputs)


def keep_history(connection: Connection, rollout: Rollout, body: bytes, now_s: float) -> None:
    """Store the history of a rollout (``History.to_bytes``), unless one is stored."""
    row = {"rollout_id": rollout.id, "taken_s": now_s, "body": body}
    added = insert(connection, histories).values(**row)
    key = [histories.c.rollout_id]
    connection.execute(added.on_conflict_do_nothing(index_elements=key))


def _labels(outputs: Sequence[Mapping[str, int]]) -> tuple[str, ...]:
    """The most frequent labels, by name."""
    sums: dict[str, int] = {}
    for one in outputs:
        for label, count in one.items():
            sums[label] = sums.get(label, 0) + count
    kept = sorted(sums, key=lambda label: (-sums[label], label))[:MAX_LABELS]
    return tuple(sorted(kept))


def failure_budgets(connection: Connection, rollout: Rollout) -> dict[str, float]:
    """By kind of outcome, the share of devices that may fail that way.

    From past rollouts of the model that were promoted: see ``failure_budget``. Where there are none,
    and for silence, which leaves nothing to count, the operator's own limit for failed installs, or
    1 %.
    """
    limit = rollout.spec.guards.max_install_failure_rate
    without = LEAST_BUDGET if limit is None else max(limit, LEAST_BUDGET)
    failed, finished = _past_outcomes(connection, rollout)
    if finished == 0:
        return dict.fromkeys(KINDS, without)
    known = {kind: failure_budget(failed.get(kind, 0), finished) for kind in KINDS}
    return known | {SILENCE: without}


def _past_outcomes(connection: Connection, rollout: Rollout) -> tuple[dict[str, int], int]:
    past = (
        select(rollouts.c.id, rollouts.c.details)
        .where(
            rollouts.c.model == rollout.model,
            rollouts.c.number < rollout.number,
            rollouts.c.state == str(State.PROMOTED),
        )
        .order_by(rollouts.c.number.desc())
        .limit(_MOST_PAST)
    )
    # Where a stratum was stopped, its failures are no measure of what may fail.
    clean = [row.id for row in connection.execute(past) if not row.details.get("stopped")]
    step = deployments.c
    query = (
        select(step.outcome, step.reason_code, func.count())
        .where(
            step.rollout_id.in_(clean),
            step.outcome.in_(("committed", "refused", "reverted")),
        )
        .group_by(step.outcome, step.reason_code)
    )
    failed: dict[str, int] = {}
    finished = 0
    for outcome, code, count in connection.execute(query):
        finished += count
        kind = kind_of_failure(outcome, code)
        if kind is not None:
            failed[kind] = failed.get(kind, 0) + count
    return failed, finished
