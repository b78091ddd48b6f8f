"""Who a rollout is for: kinds of devices are judged once, and it comes out as if each had been asked."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, update

from agent.trust import BundleRelease, DeviceFacts, excluded, selects, stratum_of
from fleet.rollout.members import Member, everyone, members_of
from fleet.rollout.observe import read_snapshot
from fleet.rollout.parsing import parse_spec
from fleet.rollout.record import Rollout
from fleet.rollout.rings import begin_ring
from fleet.rollout.states import State
from fleet.store.tables import devices
from tests.support.evidence_fleet import NEW, START_S, EvidenceFleet, store_like

PATH = "bundles/cam/digits-2"
IDS = ("a", "b", "c", "d", "e", "f")
LABELS = st.dictionaries(st.sampled_from(("site", "line")), st.sampled_from(("1", "2")))
ASKED = st.dictionaries(
    st.sampled_from(("site", "line", "id", "class", "hardware")),
    st.sampled_from(("1", "2", "a", "cam", "x86_64")),
    max_size=2,
)
KINDS = st.fixed_dictionaries(
    {
        "device_class": st.sampled_from(("cam", "pump")),
        "hardware": st.sampled_from(("x86_64", "aarch64")),
        "labels": LABELS,
        "agent_version": st.sampled_from(("", "1.0")),
        "execution_provider": st.sampled_from(("", "cuda")),
        "utc_offset_minutes": st.sampled_from((None, 60)),
    }
)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return tmp_path_factory.mktemp("members") / "template.db"


@pytest.fixture(scope="module")
def store(template):
    opened = store_like(template, template.parent / "own")
    yield opened
    opened.close()


def rollout_of(selector: dict, exclude: dict, stopped: tuple[str, ...]) -> Rollout:
    spec = parse_spec(
        {
            "bundle": PATH,
            "model": "digits",
            "stages": [{"percent_bp": 10_000, "bake_s": 600.0}],
            "selector": selector,
            "exclude": [f"{label}={value}" for label, value in exclude.items()],
            "hold_back": "0",
        }
    )
    return Rollout(
        id="r1", number=1, model="digits", bundle=PATH, manifest_sha256=NEW, previous_bundle="",
        spec=spec, state=State.RUNNING, stage=0, stage_started_s=START_S, reason="",
        created_s=START_S, updated_s=START_S, details={"stopped": list(stopped)},
    )  # fmt: skip


def facts_of(device_id: str, row: dict) -> DeviceFacts:
    return DeviceFacts(
        device_id, row["device_class"], row["hardware"], row["labels"], row["agent_version"], "",
        row["execution_provider"], row["utc_offset_minutes"] or 0,
    )  # fmt: skip


def is_for(rollout: Rollout, hardware: tuple[str, ...], facts: DeviceFacts) -> bool:
    """Asked of one device, by the functions that devices use."""
    return (
        facts.device_class == "cam"
        and (not hardware or facts.hardware in hardware)
        and selects(rollout.spec.selector, facts)
        and excluded(rollout.spec.exclude, facts) is None
        and stratum_of(facts) not in rollout.stopped
    )


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(KINDS, min_size=1, max_size=len(IDS)),
    selector=ASKED,
    exclude=ASKED,
    stopped=st.sampled_from(((), ("cam/cuda",), ("cam/cpu",))),
    hardware=st.sampled_from(((), ("aarch64",))),
)
def test_it_comes_out_as_if_each_device_had_been_asked(
    store, rows, selector, exclude, stopped, hardware
):
    rollout = rollout_of(selector, exclude, stopped)
    release = BundleRelease(
        path=PATH, sha256=NEW, length=10, model="digits", version="2", device_class="cam",
        hardware=hardware,
    )  # fmt: skip
    known = dict(zip(IDS, rows, strict=False))
    with store.engine.connect() as connection:  # never committed
        seen = [
            {"id": one, **row, "first_seen_s": 0.0, "last_seen_s": float(number)}
            for number, (one, row) in enumerate(known.items())
        ]
        connection.execute(insert(devices), seen)
        found = members_of(connection, rollout, release)
        asked = [one for one, *_ in everyone(connection, rollout, release)]
        connection.rollback()
    assert sorted(asked) == list(known)
    facts = [facts_of(one, row) for one, row in known.items()]
    assert found == [
        Member(one.device_id, float(number), stratum_of(one))
        for number, one in enumerate(facts)
        if is_for(rollout, hardware, one)
    ]


@pytest.mark.parametrize(
    ("selector", "exclude", "expected"),
    [({"id": "b"}, {}, ["b"]), ({}, {"id": "b"}, ["a", "c"])],
    ids=("selected", "left out"),
)
def test_devices_that_say_the_same_may_be_named_by_their_id(store, selector, exclude, expected):
    with store.engine.connect() as connection:  # never committed
        same = {"device_class": "cam", "labels": {}, "first_seen_s": 0.0, "last_seen_s": 0.0}
        connection.execute(insert(devices), [{"id": one, **same} for one in "abc"])
        found = members_of(connection, rollout_of(selector, exclude, ()), None)
        connection.rollback()
    assert [one.device_id for one in found] == expected


def test_the_others_together_are_those_outside_the_cohort(template, tmp_path):
    fleet = EvidenceFleet(store_like(template, tmp_path), size=30)
    rollout = fleet.start(5000, 10_000)
    with fleet.store.begin() as connection:
        begin_ring(connection, rollout, None, fleet.now_s)
    cohort = set(fleet.cohort())
    *others, left = (one for one in fleet.ids if one not in cohort)
    fleet.now_s += 60
    fleet.report(
        fleet.ids, failures=2, over_objective=3, output_violations=4
    )  # all still serve the old
    fleet.now_s += 60
    fleet.report(others[:1], failures=5)
    with fleet.store.begin() as connection:  # it has served, and is of another class now
        connection.execute(update(devices).where(devices.c.id == left).values(device_class="pump"))
    with fleet.store.read() as connection:
        control = read_snapshot(connection, rollout, None, fleet.now_s, START_S).control
    fleet.store.close()
    assert cohort
    assert others
    assert control.devices == len(others)
    served = control.served
    assert served.requests == fleet.per_minute * (len(others) + 1)
    assert served.failures == 2 * len(others) + 5
    assert (served.over_objective, served.output_violations) == (3 * len(others), 4 * len(others))
