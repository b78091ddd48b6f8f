"""The ring of every kind of stage follows from its rollout and its history, and is equal when it is frozen again."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update

from fleet.rollout import records
from fleet.rollout.ring_replay import check_ring
from fleet.rollout.rings import begin_ring
from fleet.store.tables import rings, rollouts
from tests.support.evidence_fleet import EvidenceFleet, store_like

Make = Callable[..., EvidenceFleet]
DRIFTING = {"metrics": {"error_rate": 1.5, "rss": 1.2, "output_drift": 1.5}}
SHADOW = [
    {"percent_bp": 3000, "bake_s": 600.0, "kind": "shadow", "traffic_bp": 2000},
    {"percent_bp": 10_000, "bake_s": 600.0},
]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("ring_replay")

    def made(size: int, **changes: Any) -> EvidenceFleet:
        home = folder / str(len(list(folder.iterdir())))
        return EvidenceFleet(store_like(folder / "template.db", home), size=size, **changes)

    return made


def checked(fleet: EvidenceFleet) -> list[list[str] | None]:
    """Begins the stage, and makes every beginning there was again."""
    with fleet.store.begin() as connection:
        begin_ring(connection, fleet.rollout(), None, fleet.now_s)
    with fleet.store.read() as connection:
        rollout = records.get_rollout(connection, "r1")
        rows = connection.execute(select(rings).order_by(rings.c.id)).all()
        return [check_ring(connection, rollout, row) for row in rows]


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (60, {"guards": DRIFTING}),
        (60, {"hold_back": "30%", "exclude": ["id=cam-000004"]}),
        (60, {"strategy": "shadow-then-canary", "stages": SHADOW, "guards": DRIFTING}),
        (
            2300,
            {"stages": [{"percent_bp": 200, "bake_s": 600.0}, *SHADOW[1:]]},
        ),  # control is sub-sampled
    ],
)
def test_a_stage_as_it_began(make: Make, size: int, changes: dict[str, Any]) -> None:
    fleet = make(size, providers=("cpu", "cuda"))
    fleet.history(hours=1, windows_per_hour=1)
    fleet.start(3000, 10_000, **changes)
    assert checked(fleet) == [[]]


def test_a_later_stage_one_that_was_resumed_and_what_became_of_the_rollout(make: Make) -> None:
    fleet = make(60)
    fleet.history(hours=1, windows_per_hour=1)
    fleet.start(3000, 6000, 10_000)
    assert checked(fleet) == [[]]
    for later in ({}, {"stage": 1}, {"stage": 2, "state": "rolled_back"}):
        fleet.now_s += 100
        with fleet.store.begin() as connection:
            connection.execute(update(rollouts).values(stage_started_s=fleet.now_s, **later))
        assert not any(checked(fleet))


def test_a_ring_of_another_rollout_does_not_follow_from_this_one(make: Make) -> None:
    fleet = make(60)
    fleet.start(3000, 10_000)
    assert checked(fleet) == [[]]
    with fleet.store.read() as connection:
        rollout = records.get_rollout(connection, "r1")
        row = connection.execute(select(rings)).one()
        other = replace(rollout, id="r2", manifest_sha256="cc" * 32)
        assert check_ring(connection, other, row) is None  # r2 has no history
        reached = rollout.spec.stages[1:]
        wider = replace(rollout, spec=replace(rollout.spec, stages=(*reached, *reached)))
        found = check_ring(connection, wider, row)
    assert found is not None
    said = {text.partition(":")[0] for text in found}
    assert {"cohort", "percent_bp"} <= said
