"""Finding the rings that are stored, and reading them.

Rules kept here: which stage a rollout is in decides which ring is open, so nothing has to be closed;
a ring never changes, so it is kept in memory by the digest of its bytes.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Final

from sqlalchemy import Connection, select

from fleet.errors import ServerError
from fleet.rollout.frozen import FrozenRing
from fleet.rollout.record import Rollout
from fleet.rollout.spec import ALL_BP
from fleet.rollout.states import ACTIVE, State
from fleet.store.tables import rings, rollouts

__all__ = ["OpenRing", "StoredRing", "cohort_bp", "open_rings", "read_ring", "ring_of"]

_CACHED: Final = 8  # rings; a large one has some ten megabytes


@dataclass(frozen=True, slots=True)
class StoredRing:
    """Where the ring of a stage is stored. ``digest`` is that of its body."""

    id: int
    digest: str


def ring_of(connection: Connection, rollout: Rollout) -> StoredRing | None:
    """The ring of the stage that the rollout is in; None while it has not begun."""
    columns = rings.c
    query = (
        select(columns.id, columns.hashes)
        .where(
            columns.rollout_id == rollout.id,
            columns.stage == rollout.stage,
            columns.started_s == rollout.stage_started_s,
        )
        .order_by(columns.attempt)
        .limit(1)
    )
    row = connection.execute(query).first()
    return None if row is None else StoredRing(row.id, row.hashes["body"])


def cohort_bp(rollout: Rollout) -> int:
    """The share of the matching devices that the stage is for.

    What the release still holds back is in it: devices are judged where the hash puts them.
    """
    if rollout.state is State.PROMOTED:
        return ALL_BP
    return min(rollout.current_stage.percent_bp, rollout.spec.reach_bp)


@dataclass(frozen=True, slots=True)
class OpenRing:
    """The stage that a rollout is in now."""

    id: int
    digest: str  # of its body
    rollout_id: str
    model: str
    manifest_sha256: str
    created_s: float
    started_s: float


def open_rings(connection: Connection, models: Iterable[str]) -> list[OpenRing]:
    """The rings that count windows of these models now."""
    query = (
        select(
            rings.c.id,
            rings.c.hashes,
            rollouts.c.id.label("rollout_id"),
            rollouts.c.model,
            rollouts.c.manifest_sha256,
            rollouts.c.created_s,
            rings.c.started_s,
        )
        .join(
            rollouts,
            (rings.c.rollout_id == rollouts.c.id)
            & (rings.c.stage == rollouts.c.stage)
            & (rings.c.started_s == rollouts.c.stage_started_s),
        )
        .where(rollouts.c.state.in_(sorted(ACTIVE)), rollouts.c.model.in_(sorted(set(models))))
        .order_by(rings.c.id)
    )
    return [OpenRing(row.id, row.hashes["body"], *row[2:]) for row in connection.execute(query)]


_cache: OrderedDict[str, FrozenRing] = OrderedDict()
_cache_lock = Lock()


def read_ring(connection: Connection, ring_id: int, digest: str) -> FrozenRing:
    """A ring by its id; kept in memory by the digest of its body, since it never changes.

    Raises:
        ServerError: what is stored is damaged or of another version.
    """
    with _cache_lock:
        found = _cache.get(digest)
        if found is not None:
            _cache.move_to_end(digest)
            return found
    body = connection.execute(select(rings.c.body).where(rings.c.id == ring_id)).scalar_one()
    try:
        frozen = FrozenRing.from_bytes(body)
    except ValueError as error:
        raise ServerError(
            f"ring {ring_id} cannot be read: {error}. Pause and resume its rollout, and the stage "
            "begins anew with another one"
        ) from error
    with _cache_lock:
        _cache[digest] = frozen
        while len(_cache) > _CACHED:
            _cache.popitem(last=False)
    return frozen
