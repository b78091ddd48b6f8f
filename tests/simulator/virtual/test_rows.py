"""Reports of virtual devices: as the fleet's own parser would have made them."""

import numpy as np
import pytest

from agent.trust import BundleRelease
from fleet.monitor.reports import Kind, parse_report
from protos import report_pb2
from simulator.virtual import Candidate, Population, Setting, VirtualWorld
from simulator.virtual.rows import BOOT_ID, Reporter, Serving

IDS = tuple(f"d-{number}" for number in range(40))
EPOCH_S = 1_800_000_000.0


def serving(version: str, rollout_id: str) -> Serving:
    release = BundleRelease(
        path=f"bundles/edge/m-{version}",
        sha256=version[0] * 64,
        length=10,
        model="m",
        version=version,
        device_class="edge",
    )
    return Serving(release, rollout_id)


OLD, NEW = serving("1.0", "r1"), serving("2.0", "r2")


@pytest.fixture(scope="module")
def reports():
    setting = Setting(Population(feedback_share=0.2), Candidate(refused_rate=0.3, install_s=5.0))
    world = VirtualWorld(setting, len(IDS), 1)
    reporter = Reporter(IDS, ("edge/cpu",) * len(IDS), EPOCH_S)
    world.deploy(np.arange(20))
    windows, events = world.advance(180.0)
    made = {
        "windows": list(reporter.windows(windows, OLD, NEW)),
        "history": list(reporter.history(world.history(), OLD)),
        "begun": list(reporter.begun(np.arange(20), NEW, 0.0)),
        "ended": list(reporter.ended(events, NEW)),
        "inventories": reporter.inventories(np.arange(3), OLD, 0.0),
    }
    return windows, made


def test_no_report_has_the_number_of_another(reports):
    _, made = reports
    keys = [(one.device_id, one.boot_id, one.seq) for of in made.values() for one in of]
    assert len(set(keys)) == len(keys)
    assert all(one.row["seq"] == one.seq for of in made.values() for one in of if "seq" in one.row)


def test_a_window_is_what_a_device_would_have_sent(reports):
    windows, made = reports
    place = int(np.flatnonzero(windows.candidate)[0])
    one = made["windows"][place]
    device = IDS[windows.device[place]]
    sent = report_pb2.Report(
        device_id=device,
        boot_id=BOOT_ID,
        seq=one.seq,
        created_unix_ms=one.row["end_ms"],
        window=report_pb2.Window(
            model="m",
            version="2.0",
            manifest_sha256="2" * 64,
            rollout_id="r2",
            start_unix_ms=one.row["start_ms"],
            end_unix_ms=one.row["end_ms"],
            requests=int(windows.requests[place]),
            failures=int(windows.failures[place]),
            feedback_count=int(windows.compared[place]),
            feedback_correct=int(windows.compared[place] - windows.wrong[place]),
            merged=1,
        ),
    )
    assert one == parse_report(sent, device)
    assert one.row["start_ms"] == pytest.approx((EPOCH_S + windows.start_s[place]) * 1000, abs=1)
    old = made["windows"][int(np.flatnonzero(~windows.candidate)[0])]
    assert (old.row["version"], old.row["rollout_id"]) == ("1.0", "r1")


def test_the_past_is_one_day_that_ends_when_the_world_begins(reports):
    _, made = reports
    assert len(made["history"]) == len(IDS)
    for one in made["history"]:
        assert one.row["end_ms"] == EPOCH_S * 1000
        assert one.row["end_ms"] - one.row["start_ms"] == 86_400_000
        assert one.row["requests"] > 40_000


def test_deployments_begin_and_end(reports):
    _, made = reports
    assert [one.row["phase"] for one in made["begun"]] == ["fetch"] * 20
    assert {(one.row["phase"], one.row["outcome"]) for one in made["ended"]} == {
        ("commit", "committed"),
        ("try", "refused"),
    }
    begun = {one.device_id: one.row["deployment_id"] for one in made["begun"]}
    assert {one.device_id: one.row["deployment_id"] for one in made["ended"]} == begun
    assert all(one.kind is Kind.EVENT for one in made["ended"])
    assert made["inventories"][0].active[0]["manifest_sha256"] == "1" * 64
