"""The beginning of a stage: who is in its ring, from when it counts, what it may spend."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from agent.trust import slot_of
from fleet.errors import ServerError
from fleet.rollout.counting import read_counts
from fleet.rollout.frozen import FrozenRing
from fleet.rollout.history import failure_budgets
from fleet.rollout.rings import begin_ring
from fleet.rollout.spec import Statistics
from fleet.rollout.stored_rings import read_ring, ring_of
from fleet.store.tables import (
    deployments,
    device_models,
    devices,
    histories,
    looks,
    rings,
    rollouts,
)
from tests.support.evidence_fleet import NEW, EvidenceFleet, store_like, window_row

Make = Callable[..., EvidenceFleet]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("rings")

    def made(size: int = 40, **changes: Any) -> EvidenceFleet:
        home = folder / str(len(list(folder.iterdir())))
        return EvidenceFleet(store_like(folder / "template.db", home), size=size, **changes)

    return made


def begin(fleet: EvidenceFleet) -> FrozenRing:
    with fleet.store.begin() as connection:
        stored = begin_ring(connection, fleet.rollout(), None, fleet.now_s)
        return read_ring(connection, stored.id, stored.digest)


def test_a_stage_begins_once(make: Make) -> None:
    fleet = make()
    fleet.start(5000, 10_000)
    one = begin(fleet)
    fleet.now_s += 5
    assert begin(fleet) == one
    with fleet.store.read() as connection:
        assert len(connection.execute(select(rings)).all()) == 1
        assert len(connection.execute(select(histories)).all()) == 1


def test_the_hash_decides_who_is_in_the_cohort(make: Make) -> None:
    fleet = make()
    fleet.start(5000, 10_000)
    ring = begin(fleet).ring
    assert ring.device_ids == tuple(fleet.ids)
    assert ring.cohort.tolist() == [slot_of(NEW, one) < 5000 for one in fleet.ids]
    assert (ring.stage, ring.rings, ring.percent_bp) == (0, 2, 5000)


def test_who_is_not_compared(make: Make) -> None:
    """Not heard from for two heartbeats, running something else, left out, of another class."""
    fleet = make()
    fleet.start(5000, 10_000, exclude=["id=cam-000004"])
    with fleet.store.begin() as connection:
        for device, change in (
            ("cam-000001", {"last_seen_s": fleet.now_s - 400}),
            ("cam-000002", {"device_class": "gate"}),
        ):
            connection.execute(update(devices).where(devices.c.id == device).values(change))
        runs = update(device_models).where(device_models.c.device_id == "cam-000003")
        connection.execute(runs.values(manifest_sha256="cc" * 32))
        has_new = update(device_models).where(device_models.c.device_id == "cam-000005")
        connection.execute(has_new.values(manifest_sha256=NEW))
    ring = begin(fleet).ring
    out = {f"cam-00000{number}" for number in (1, 2, 3, 4)}
    assert set(ring.device_ids) == set(fleet.ids) - out
    assert ring.drawn_from == len(fleet.ids) - 4


def test_strata_are_class_and_provider(make: Make) -> None:
    fleet = make(providers=("cuda", "", "cpu"))
    fleet.start(5000, 10_000)
    ring = begin(fleet).ring
    assert ring.stratum_names == ("cam/cpu", "cam/cuda")
    assert [ring.stratum_names[index] for index in ring.strata[:3]] == [
        "cam/cuda", "cam/cpu", "cam/cpu",
    ]  # fmt: skip


def test_what_came_in_before_the_ring_began_is_counted(make: Make) -> None:
    """However late the fleet manager gets to it."""
    fleets = make(), make()
    for number, fleet in enumerate(fleets):
        fleet.start(5000, 10_000)
        if number == 0:
            begin(fleet)
        for _ in range(2):
            fleet.now_s += 60
            fleet.report(fleet.ids)
        begin(fleet)
    found = []
    for fleet in fleets:
        with fleet.store.read() as connection:
            stored = ring_of(connection, fleet.rollout())
            assert stored is not None
            frozen = read_ring(connection, stored.id, stored.digest)
            found.append((read_counts(connection, stored.id, frozen), fleet.snapshot().control))
    assert found[0][0].to_bytes() == found[1][0].to_bytes()
    assert found[0][0].total["error_rate"].min() == 60
    assert found[0][1] == found[1][1]


def test_baselines_are_of_before_the_rollout(make: Make) -> None:
    """Those of the second stage too, whatever the devices did since."""
    fleet = make()
    fleet.history(hours=1)
    fleet.start(5000, 10_000)
    first = begin(fleet).ring
    fleet.now_s += 60
    for device in fleet.ids:
        fleet.report([device], failures=30)
    with fleet.store.begin() as connection:
        connection.execute(update(rollouts).values(stage=1, stage_started_s=fleet.now_s))
    second = begin(fleet).ring
    assert first.baseline["error_rate"].known == 40
    assert second.baseline["error_rate"].p.tolist() == first.baseline["error_rate"].p.tolist()


def test_a_damaged_history_stops_that_rollout_alone(make: Make) -> None:
    fleet = make()
    fleet.start(5000, 10_000)
    begin(fleet)
    with fleet.store.begin() as connection:
        connection.execute(update(histories).values(body=b"nothing"))
        connection.execute(update(rollouts).values(stage=1, stage_started_s=fleet.now_s + 1))
    with pytest.raises(ServerError, match=r"history of rollout r1 cannot be read.*start it again"):
        begin(fleet)


def test_nothing_is_known_of_a_new_device(make: Make) -> None:
    fleet = make()
    fleet.history(hours=1)
    fleet.start(5000, 10_000)
    first = begin(fleet).ring
    row = {"device_class": "cam", "hardware": "x86_64", "labels": {}, "id": "cam-new"}
    fleet.now_s += 60
    with fleet.store.begin() as connection:
        seen = {"first_seen_s": fleet.now_s, "last_seen_s": fleet.now_s}
        connection.execute(insert(devices), row | seen)
        runs = {"device_id": "cam-new", "model": "digits", "version": "1", "updated_s": 0.0}
        connection.execute(insert(device_models), runs | {"manifest_sha256": "aa" * 32})
        connection.execute(update(rollouts).values(stage=1, stage_started_s=fleet.now_s))
    second = begin(fleet).ring
    assert second.device_ids[-1] == "cam-new"
    assert second.baseline["error_rate"].p[-1] == pytest.approx(first.baseline["error_rate"].mu)


@pytest.mark.parametrize(("done", "share"), [(None, 1.0), (2, 0.75), (7, 0.5)])
def test_a_resumed_stage_spends_what_was_left(make: Make, done: int | None, share: float) -> None:
    fleet = make()
    fleet.start(5000, 10_000, bake_s=600.0)
    first = begin(fleet)
    with fleet.store.begin() as connection:
        stored = ring_of(connection, fleet.rollout())
        assert stored is not None
        if done is not None:
            row = {"ring_id": stored.id, "number": 1, "rollout_id": "r1", "stage": 0, "k": done}
            row |= {"at_s": 0.0, "state": b"", "result": {}, "counts": b""}
            evidence = {"looks_s": list(first.ring.looks_s)}
            connection.execute(insert(looks), row | {"evidence": evidence})
        connection.execute(update(rollouts).values(stage_started_s=fleet.now_s + 100))
    fleet.now_s += 100
    again = begin(fleet)
    assert len(first.ring.looks_s) == 8
    assert again.ring.alpha == pytest.approx(share * first.ring.alpha)
    assert again.ring.started_s == fleet.now_s


def test_of_both_arms_on_each_device_the_stage_is_the_pool(make: Make) -> None:
    fleet = make()
    stages = [
        {"percent_bp": 5000, "bake_s": 600.0, "kind": "shadow"},
        {"percent_bp": 10_000, "bake_s": 600.0},
    ]
    fleet.start(strategy="shadow-then-canary", stages=stages)
    frozen = begin(fleet)
    assert set(frozen.ring.device_ids) == set(fleet.cohort())
    assert frozen.ring.cohort.all()
    assert frozen.roles == ("", "shadow")


def test_a_stage_is_held_to_what_it_can_see(make: Make) -> None:
    large = make(size=300)
    large.history(hours=2)
    guards = {"metrics": {"error_rate": 3.0}, "silence_s": 300.0}
    large.start(5000, 10_000, bake_s=1800.0, guards=guards)
    frozen = begin(large)
    assert frozen.statistics is Statistics.AUTO
    assert frozen.held == ("error_rate",)
    small = make(size=10)
    small.start(5000, 10_000, bake_s=1800.0, guards=guards)
    assert begin(small).held == ()


def test_budgets_follow_from_promoted_rollouts(make: Make) -> None:
    fleet = make()
    rollout = fleet.start(5000, 10_000)
    with fleet.store.begin() as connection:
        assert failure_budgets(connection, rollout) == dict.fromkeys(
            ("install", "crash", "revert", "silence"), 0.1
        )
        old = connection.execute(select(rollouts)).mappings().one()
        stopped = {"stopped": ["cam/cuda"]}
        past = ((-2, "promoted", stopped), (-1, "rolled_back", {}), (0, "promoted", {}))
        for number, state, details in past:
            about = {"id": f"r{number}", "number": number, "state": state, "details": details}
            connection.execute(insert(rollouts), dict(old) | about)
            for device in range(500):
                outcome = "refused" if device < 20 or number < 0 else "committed"
                code = "disk_full" if outcome == "refused" else ""
                step = {"device_id": f"x{device}", "rollout_id": about["id"], "outcome": outcome}
                plain = dict.fromkeys(("deployment_id", "manifest_sha256", "phase", "reason"), "")
                times = {"at_ms": 0, "updated_s": 0.0}
                connection.execute(
                    insert(deployments), plain | step | times | {"reason_code": code}
                )
        budgets = failure_budgets(connection, rollout)
    assert budgets["install"] == pytest.approx(0.058, abs=0.002)
    assert (budgets["crash"], budgets["silence"]) == (0.01, 0.1)


def test_windows_on_the_border_of_a_stage_count_where_they_began(
    make: Make, tmp_path: Path
) -> None:
    fleet = make()
    fleet.start(5000, 10_000)
    frozen = begin(fleet)
    rows = [
        window_row("cam-000000", fleet.now_s + 59),  # began before the stage
        window_row("cam-000001", fleet.now_s + 60),
    ]
    with fleet.store.begin() as connection:
        fleet.report_in(connection, rows)
        stored = ring_of(connection, fleet.rollout())
        assert stored is not None
        counts = read_counts(connection, stored.id, frozen)
    assert counts.total["error_rate"][:2].tolist() == [0, 30]
