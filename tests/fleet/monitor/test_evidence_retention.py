"""Evidence goes when nothing needs it, a page at a time."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from fleet.monitor.evidence_retention import prune_evidence
from fleet.store.tables import (
    decision_snapshots,
    decisions,
    histories,
    looks,
    ring_counts,
    rings,
    rollouts,
    served,
)
from tests.support.evidence_fleet import EvidenceFleet, store_like

TABLES = (decision_snapshots, histories, looks, ring_counts, rings, served)
Make = Callable[[], EvidenceFleet]


@pytest.fixture
def fleet(tmp_path: Path) -> EvidenceFleet:
    """A rollout that went through a stage and is in the next."""
    made = EvidenceFleet(store_like(tmp_path / "template.db", tmp_path / "home"), size=12)
    made.start(5000, 10_000, bake_s=120.0)
    made.tick()
    made.install()
    made.minutes(4)
    assert made.rollout().stage == 1
    return made


def rows(fleet: EvidenceFleet) -> dict[str, int]:
    with fleet.store.read() as connection:
        return {
            table.name: int(connection.scalar(select(func.count()).select_from(table)) or 0)
            for table in TABLES
        }


def prune(fleet: EvidenceFleet, before_s: float, limit: int = 1000) -> int:
    with fleet.store.begin() as connection:
        return prune_evidence(connection, before_s, limit)


def test_sums_of_a_stage_that_was_left_go_and_nothing_else(fleet: EvidenceFleet) -> None:
    before = rows(fleet)
    assert all(before.values())
    with fleet.store.read() as connection:
        first = connection.scalar(select(func.min(rings.c.id)))
        old = select(func.count()).where(ring_counts.c.ring_id == first)
        left = int(connection.scalar(old) or 0)
    assert left > 0
    assert prune(fleet, before_s=9e12) == left
    assert rows(fleet) == before | {"ring_counts": before["ring_counts"] - left}
    assert prune(fleet, before_s=9e12) == 0


def test_all_evidence_of_a_rollout_that_ended_long_ago_goes(fleet: EvidenceFleet) -> None:
    with fleet.store.begin() as connection:
        connection.execute(update(rollouts).values(state="promoted"))
        ended_s = connection.scalar(select(rollouts.c.updated_s))
    whole = rows(fleet)
    prune(fleet, before_s=ended_s)
    assert rows(fleet) == whole | {"ring_counts": 0}, "it ended at that very time"
    turns = 0
    while prune(fleet, before_s=ended_s + 1, limit=5) == 5:
        turns += 1
        assert turns < 100
    assert not any(rows(fleet).values())
    with fleet.store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(decisions))
