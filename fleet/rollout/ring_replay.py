"""The beginning of a stage made again: what every look of it starts from, for ``fleet rollout audit``.

Rules kept here: nothing is changed; whatever follows from the rollout and from what its devices were like before is
computed anew, so that neither a cohort nor a seed nor a baseline can be put in place of the real one; who could be
heard then, and what past rollouts made of failure budgets, is as it was frozen.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

from sqlalchemy import Connection, Row, select

from agent.trust import slots_of
from fleet.rollout.frozen import FrozenRing
from fleet.rollout.gate.evidence import as_json, canonical, hashes
from fleet.rollout.gate.opening import Pool
from fleet.rollout.gate.ring import Counts, Ring
from fleet.rollout.history import History
from fleet.rollout.record import Rollout
from fleet.rollout.rings import freeze, share_left
from fleet.rollout.states import State
from fleet.rollout.stored_rings import cohort_bp
from fleet.store.tables import histories

__all__ = ["check_ring", "differences_of"]

_CLOSE: Final = 1e-12  # of alpha, which is a product


def check_ring(connection: Connection, rollout: Rollout, row: Row[Any]) -> list[str] | None:
    """Every difference between a stored ring and the one that follows from its rollout, in words.

    None when the history of the rollout is no longer kept.

    Raises:
        ValueError: ring or history are damaged, or of another version.
    """
    found = hashlib.sha256(row.body).hexdigest()
    if found != row.hashes["body"]:
        return [f"body: recorded sha256 {row.hashes['body']}, what is stored has {found}"]
    body = connection.scalar(select(histories.c.body).where(histories.c.rollout_id == rollout.id))
    if body is None:
        return None
    frozen = FrozenRing.from_bytes(row.body)
    then = replace(
        rollout, state=State.RUNNING, stage=row.stage, stage_started_s=row.started_s
    )  # whatever became of it since
    share = share_left(connection, then, row.attempt)
    parts = hashes(frozen.ring, Counts())
    differences = [
        f"hashes.{name}: recorded {row.hashes.get(name)}, computed {parts[name]}"
        for name in ("pool", "cohort", "baseline")
        if row.hashes.get(name) != parts[name]
    ]
    return differences + differences_of(then, frozen, History.from_bytes(body), share)


def differences_of(
    then: Rollout, frozen: FrozenRing, history: History, share: float = 1.0
) -> list[str]:
    """What a ring has that does not follow from its rollout, as it was ``then``, and its history. Pure.

    ``share`` is what of alpha this run of the stage may spend.
    """
    ring = frozen.ring
    slot, share_bp = slots_of(then.manifest_sha256), cohort_bp(then)
    pool = Pool(
        ring.device_ids,
        [ring.stratum_names[index] for index in ring.strata.tolist()],
        [slot(device_id) < share_bp for device_id in ring.device_ids],
    )
    again = freeze(then, pool, history, ring.alpha, frozen.budgets)
    # Control was sub-sampled when it was frozen, and how many there were is known from then alone.
    again = replace(again, ring=replace(again.ring, drawn_from=ring.drawn_from))
    differences = [*_differing(ring, again.ring), *_differing(frozen, again)]
    alpha = then.spec.guards.alpha * share
    if abs(ring.alpha - alpha) > _CLOSE:
        differences.append(f"alpha: recorded {ring.alpha:g}, the stage has {alpha:g} to spend")
    if ring.drawn_from < ring.size:
        differences.append(f"drawn_from: recorded {ring.drawn_from}, and {ring.size} are in it")
    return differences


def _differing(old: Any, new: Any) -> list[str]:
    """The fields of two dataclasses that are not the same, byte for byte."""
    found = []
    for field in fields(old):
        one, other = (_plain(getattr(value, field.name)) for value in (old, new))
        if field.name != "ring" and canonical(one) != canonical(other):
            found.append(f"{field.name}: recorded is not what follows from the rollout")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Ring):
        return None  # compared by itself
    return as_json(value)
