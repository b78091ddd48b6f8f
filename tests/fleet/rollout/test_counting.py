"""Windows are counted once, for the stages that are under way."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from fleet.errors import ServerError
from fleet.rollout.counting import read_counts
from fleet.rollout.gate.ring import Counts
from fleet.rollout.rings import begin_ring
from fleet.rollout.stored_rings import read_ring, ring_of
from fleet.store.tables import ring_counts, rings, rollouts, served
from tests.support.evidence_fleet import NEW, OLD, EvidenceFleet, store_like, window_row

Make = Callable[..., EvidenceFleet]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Fleets with a stage under way, each in a database of its own."""
    folder = tmp_path_factory.mktemp("counting")

    def made(size: int = 12, **changes: Any) -> EvidenceFleet:
        home = folder / str(len(list(folder.iterdir())))
        fleet = EvidenceFleet(store_like(folder / "template.db", home), size=size)
        fleet.start(5000, 10_000, **changes)
        begin(fleet)
        return fleet

    return made


def begin(fleet: EvidenceFleet) -> None:
    with fleet.store.begin() as connection:
        begin_ring(connection, fleet.rollout(), None, fleet.now_s)


def arrive(fleet: EvidenceFleet, *rows: dict[str, Any]) -> None:
    with fleet.store.begin() as connection:
        fleet.report_in(connection, rows)


def counted(fleet: EvidenceFleet, role: str = "") -> Counts:
    with fleet.store.read() as connection:
        ring = ring_of(connection, fleet.rollout())
        assert ring is not None
        frozen = read_ring(connection, ring.id, ring.digest)
        return read_counts(connection, ring.id, frozen, role)


def served_rows(fleet: EvidenceFleet) -> dict[tuple[bool, str], tuple[int, ...]]:
    columns = served.c
    query = select(
        columns.ours, columns.device_id, columns.requests, columns.failures,
        columns.over_objective, columns.output_violations,
    )  # fmt: skip
    with fleet.store.read() as connection:
        return {(row[0], row[1]): tuple(row[2:]) for row in connection.execute(query)}


def test_a_repeated_report_counts_once(make: Make) -> None:
    fleet = make()
    row = window_row("cam-000003", fleet.now_s + 60, failures=4)
    for _ in range(3):
        arrive(fleet, row)
    arrive(fleet, row, row)
    counts = counted(fleet)
    assert counts.bad["error_rate"].tolist() == [0, 0, 0, 4] + [0] * 8
    assert counts.total["error_rate"].sum() == 30
    assert counts.reported is not None
    assert counts.reported.tolist() == [False] * 3 + [True] + [False] * 8
    assert served_rows(fleet) == {(False, "cam-000003"): (30, 4, 0, 0)}


@settings(max_examples=12, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_batches_and_their_order_do_not_matter(make: Make, data: st.DataObject) -> None:
    rows = [
        window_row(
            f"cam-{device:06d}", 1_800_000_000.0 + 60 * minute, failures=device % 3, seq=minute
        )
        for device in range(4)
        for minute in range(1, 4)
    ]
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    fleets = make(), make()
    arrive(fleets[0], *rows)
    arrive(fleets[1], *shuffled[:cut])
    arrive(fleets[1], *shuffled[cut:])
    one, other = (counted(fleet) for fleet in fleets)
    assert one.to_bytes() == other.to_bytes()
    assert one.total["error_rate"].sum() == 12 * 30
    assert served_rows(fleets[0]) == served_rows(fleets[1])


def test_whose_windows_are_whose(make: Make) -> None:
    fleet = make()
    at_s = fleet.now_s
    day_s = 86_400
    rows = [
        window_row("a", at_s + 60, manifest_sha256=NEW, rollout_id="r1", non_finite=2),
        window_row("b", at_s + 60, manifest_sha256=NEW, rollout_id="r0", output_violations=3),
        window_row("c", at_s - 60, manifest_sha256=NEW, rollout_id="r0"),  # late, of an earlier try
        window_row("d", at_s - 60, manifest_sha256=NEW, rollout_id="r1"),
        window_row("e", at_s + 60, manifest_sha256=OLD),
        window_row("f", at_s + 60, manifest_sha256=OLD, role="shadow"),
        window_row("g", at_s - day_s - 60, manifest_sha256=OLD),
        window_row("h", at_s + 60, manifest_sha256=""),
        window_row("i", at_s + 60, model="other"),
    ]
    arrive(fleet, *rows)
    assert served_rows(fleet) == {
        (True, "a"): (30, 0, 0, 2),
        (True, "b"): (30, 0, 0, 3),
        (True, "d"): (30, 0, 0, 0),
        (False, "e"): (30, 0, 0, 0),
    }


@pytest.mark.parametrize(("state", "counts"), [("running", 30), ("paused", 30), ("aborted", 0)])
def test_only_rollouts_under_way_count(make: Make, state: str, counts: int) -> None:
    fleet = make()
    with fleet.store.begin() as connection:
        connection.execute(update(rollouts).values(state=state))
    arrive(fleet, window_row("cam-000001", fleet.now_s + 60))
    assert counted(fleet).total["error_rate"].sum() == counts


def test_a_stage_that_was_left_never_changes_again(make: Make) -> None:
    fleet = make()
    arrive(fleet, window_row("cam-000001", fleet.now_s + 60))
    with fleet.store.begin() as connection:
        before = connection.execute(select(ring_counts)).all()
        connection.execute(update(rollouts).values(stage=1, stage_started_s=fleet.now_s + 70))
    fleet.now_s += 120
    begin(fleet)
    arrive(fleet, window_row("cam-000001", fleet.now_s + 60))
    with fleet.store.read() as connection:
        after = connection.execute(select(ring_counts).order_by(ring_counts.c.ring_id)).all()
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1


def test_short_windows_count_in_whole_minutes(make: Make) -> None:
    """As of a device that reports every minute: whoever reports more often is not ahead."""
    fleet = make()
    for quarter in range(1, 13):
        end_s = fleet.now_s + 15 * quarter
        arrive(fleet, window_row("cam-000002", end_s, 15.0, requests=8, seq=quarter))
    total = counted(fleet).total["error_rate"]
    assert total[2] in (32, 64)
    assert total.sum() == total[2]


def test_a_ring_that_is_damaged_does_not_stop_the_intake(make: Make) -> None:
    fleet = make()
    with fleet.store.begin() as connection:
        hashes = {"body": "of the damaged one"}
        connection.execute(update(rings).values(body=b"nothing", hashes=hashes))
    arrive(fleet, window_row("cam-000001", fleet.now_s + 60))
    assert served_rows(fleet) == {(False, "cam-000001"): (30, 0, 0, 0)}
    with pytest.raises(ServerError, match=r"cannot be read.*Pause and resume its rollout"):
        fleet.snapshot()


def test_arms_are_counted_apart(make: Make) -> None:
    stages = [
        {"percent_bp": 5000, "bake_s": 600.0, "kind": "ab", "traffic_bp": 5000},
        {"percent_bp": 10_000, "bake_s": 600.0},
    ]
    fleet = make(strategy="ab", stages=stages)
    device = fleet.cohort()[0]
    outside = next(one for one in fleet.ids if one not in fleet.cohort())
    at_s = fleet.now_s + 60
    arm = {"role": "arm", "manifest_sha256": NEW, "failures": 5, "seq": 2}
    arrive(
        fleet,
        window_row(device, at_s, failures=1),
        window_row(device, at_s, **arm),
        window_row(device, at_s, **{**arm, "role": "shadow", "seq": 3}),
        window_row(device, at_s, **{**arm, "manifest_sha256": OLD, "seq": 4}),
        window_row(outside, at_s),
    )
    stable, new = counted(fleet), counted(fleet, "arm")
    assert (stable.bad["error_rate"].sum(), stable.total["error_rate"].sum()) == (1, 30)
    assert (new.bad["error_rate"].sum(), new.total["error_rate"].sum()) == (5, 30)


def test_levels_are_means_over_time(make: Make) -> None:
    fleet = make(guards={"metrics": {"rss": 1.5, "temperature": 1.5}, "silence_s": 300.0})
    for minute, rss in ((1, 100), (2, 300)):
        arrive(fleet, window_row("cam-000000", fleet.now_s + 60 * minute, rss_bytes=rss))
    counts = counted(fleet)
    assert counts.level["rss"][0] == 200.0
    assert np.isnan(counts.level["rss"][1:]).all()
    assert np.isnan(counts.level["temperature"]).all()


def test_drift_is_against_the_devices_own_past(make_with_past: Make) -> None:
    fleet = make_with_past()
    for minute in (1, 2):
        arrive(
            fleet,
            window_row("cam-000000", fleet.now_s + 60 * minute, output_counts={"cat": 30}),
            window_row("cam-000001", fleet.now_s + 60 * minute, output_counts={"dog": 30}),
            window_row("cam-000002", fleet.now_s + 60 * minute, output_counts={"cat": 5, "dog": 4}),
        )
    counts = counted(fleet)
    drift = counts.level["output_drift"]
    assert drift[0] == pytest.approx(1.0, abs=0.2), "half cats before, all cats now"
    assert abs(drift[1]) < 0.1, "always dogs"
    assert np.isnan(drift[2:]).all(), "too few answers to tell"
    assert set(counts.bad) == set(counts.total) == {"error_rate"}


@pytest.fixture(scope="module")
def make_with_past(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Cameras that saw cats and dogs alike, but for the second one, which saw dogs."""
    folder = tmp_path_factory.mktemp("past")

    def made() -> EvidenceFleet:
        fleet = EvidenceFleet(store_like(folder / "template.db", folder / "home"), size=12)
        fleet.report(fleet.ids, 600.0, output_counts={"cat": 200, "dog": 200})
        fleet.report(["cam-000001"], 600.0, output_counts={"dog": 100_000}, seq=1)
        guards = {"metrics": {"error_rate": 1.5, "output_drift": 1.5}, "silence_s": 300.0}
        fleet.start(5000, 10_000, guards=guards)
        begin(fleet)
        return fleet

    return made
