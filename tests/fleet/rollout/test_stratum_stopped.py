"""A stratum in which devices fail for good is stopped, and the rollout goes on with the others."""

import numpy as np
import pytest
from sqlalchemy import select, update

from fleet.rollout import records
from fleet.rollout.controller import Step
from fleet.rollout.gate.ring import Counts
from fleet.rollout.looks import unpack_counts, without_strata
from fleet.rollout.replay import audit
from fleet.rollout.states import State
from fleet.store.tables import deployments, looks
from tests.support.evidence_fleet import EvidenceFleet, store_like
from tests.support.rings import Setting, population

GUARDS = {"max_error_rate": 0.9, "metrics": {"error_rate": 1.5}, "silence_s": 300.0}
MIXED = ("cpu", "cpu", "cpu", "cpu", "cuda")


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> EvidenceFleet:
    """On cuda alone requests fail and then the bundle crashes; few canary devices have it."""
    folder = tmp_path_factory.mktemp("stratum")
    store = store_like(folder / "template.db", folder / "home")
    fleet = EvidenceFleet(store, size=150, providers=MIXED, factor={"cuda": 30.0})
    fleet.history(hours=1, windows_per_hour=2)
    fleet.start(2000, 10_000, bake_s=240.0, guards=GUARDS)
    fleet.tick()
    fleet.install()
    fleet.minutes(1)
    cuda = [one for number, one in enumerate(fleet.ids) if fleet.provider(number) == "cuda"]
    went_back = {"outcome": "reverted", "reason_code": "server_crashed", "phase": "revert"}
    with fleet.store.begin() as connection:
        mine = deployments.c.device_id.in_(cuda)
        connection.execute(update(deployments).where(mine).values(**went_back))
    return fleet


def test_it_is_stopped_alone_and_the_rest_is_promoted(crashing: EvidenceFleet) -> None:
    action = crashing.tick()
    assert action is not None
    assert (action.step, action.strata) == (Step.STOP_STRATUM, ("cam/cuda",)), action.reason
    assert action.reason.startswith("stopping cam/cuda in stage 1 of 2 (20 %): ")
    assert "none of 17 others: 7 reverted (server_crashed)" in action.reason
    crashing.minutes(6)
    assert crashing.rollout().stage == 1, crashing.rollout().reason
    crashing.install()
    crashing.minutes(6)
    ended = crashing.rollout()
    assert (ended.state, ended.stopped) == (State.PROMOTED, ("cam/cuda",)), ended.reason
    assert "no difference between the arms" in ended.reason or "absolute limits" in ended.reason
    with crashing.store.read() as connection:
        made_again = audit(connection, records.get_rollout(connection, "r1"))
        [first] = connection.scalars(select(looks.c.counts).where(looks.c.number == 1).limit(1))
    assert made_again.equal, made_again.to_json()
    assert made_again.missing == 0
    [counts] = unpack_counts(first)
    assert np.count_nonzero(counts.total["error_rate"] == 0) == 150 // 5, "those of cuda"


def test_what_a_stopped_stratum_reports_counts_no_more() -> None:
    drawn = population(np.random.default_rng(1), Setting(size=40, strata=("edge/cpu", "edge/cuda")))
    ring = drawn.ring
    ones = np.ones(ring.size, dtype=np.int64)
    counts = Counts({"error_rate": ones}, {"error_rate": ones}, {"heat": ones * 1.0}, ones > 0)
    assert without_strata(ring, counts, ()) is counts
    left = without_strata(ring, counts, ["edge/cuda"])
    stays = ring.strata == ring.stratum_names.index("edge/cpu")
    assert left.total["error_rate"].tolist() == stays.astype(int).tolist()
    assert np.isnan(left.level["heat"]).tolist() == (~stays).tolist()
    assert left.reported is counts.reported
    assert Counts.from_bytes(left.to_bytes()).to_bytes() == left.to_bytes()
