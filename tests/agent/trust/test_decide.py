"""What a device does about directives: each rule as a row, and properties over all of them."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trust import (
    BundleRelease,
    CurrentModel,
    Decision,
    DeviceFacts,
    Directive,
    Emergencies,
    Reason,
    Tries,
    Verb,
    World,
    bundle_path,
    decide,
    decide_in,
    selects,
    slot_of,
)

NOW_S = 1_800_000_000.0
FACTS = DeviceFacts("cam-1", "cam", "x86_64", {"site": "north"}, "0.1.0", "1.22.0")
NOTHING = CurrentModel("m")
A, B, C = (letter * 64 for letter in "abc")


def release(version: str, sha256: str, **changes: Any) -> BundleRelease:
    values: dict[str, Any] = {
        "path": bundle_path("cam", "m", version),
        "sha256": sha256,
        "length": 100,
        "model": "m",
        "version": version,
        "device_class": "cam",
        "release": int(version),
    }
    return BundleRelease(**{**values, **changes})


def deploy(number: int, version: str, sha256: str, **changes: Any) -> Directive:
    values: dict[str, Any] = {
        "id": f"r{number}",
        "number": number,
        "model": "m",
        "bundle": bundle_path("cam", "m", version),
        "sha256": sha256,
        "length": 100,
        "percent_bp": 10_000,
    }
    return Directive(**{**values, **changes})


RELEASES = {entry.path: entry for entry in (release("1", A), release("2", B), release("3", C))}
STABLE = deploy(1, "1", A)
CANARY = deploy(2, "2", B)
BACK = replace(CANARY, kind="rollback", percent_bp=0)
SLOT_OF_B = slot_of(B, FACTS.device_id)
SHADOW = replace(CANARY, mode="shadow", percent_bp=0, beside_bp=10_000, traffic_bp=500)
RAMP = replace(CANARY, ramp_s=100, stage_started_s=int(NOW_S), from_bp=SLOT_OF_B)
LATER = replace(CANARY, open_hours=("fri 09:00-10:00",))
"""It is 08:00 on a Friday."""
STOPPED = replace(CANARY, stopped=("cam/cpu",))
BLOCKS_B = Emergencies({B: "leaks"})


@dataclass(frozen=True)
class Row:
    name: str
    directives: tuple[Directive, ...]
    expect: tuple[Verb, Reason]
    have: CurrentModel = NOTHING
    release: BundleRelease | None = None
    releases: dict[str, BundleRelease] = field(default_factory=lambda: RELEASES)
    floor: dict[str, int] = field(default_factory=dict)
    facts: DeviceFacts = FACTS
    emergency: Emergencies = field(default_factory=Emergencies)
    expires_s: float = NOW_S + 1


def having(
    active: str | None = None, previous: str | None = None, pending: str | None = None
) -> CurrentModel:
    return CurrentModel("m", active, previous, pending, "r2" if pending else None)


def with_release_2(**changes: Any) -> dict[str, BundleRelease]:
    return {**RELEASES, bundle_path("cam", "m", "2"): release("2", **{"sha256": B, **changes})}


ROWS = [
    Row("newest in cohort", (STABLE, CANARY), (Verb.INSTALL, Reason.IN_COHORT), release=release("2", B)),
    Row("order does not matter", (CANARY, STABLE), (Verb.INSTALL, Reason.IN_COHORT), release=release("2", B)),
    Row("under way already", (CANARY,), (Verb.INSTALL, Reason.IN_COHORT), having(A, None, B), release("2", B)),
    Row("active already", (STABLE, CANARY), (Verb.KEEP, Reason.ALREADY_ACTIVE), having(B, A)),
    Row("canary passed over, stable active", (STABLE, replace(CANARY, percent_bp=SLOT_OF_B)),
        (Verb.KEEP, Reason.ALREADY_ACTIVE), having(A)),
    Row("canary passed over, stable wanted", (STABLE, replace(CANARY, percent_bp=SLOT_OF_B)),
        (Verb.INSTALL, Reason.IN_COHORT), release=release("1", A)),
    Row("last one in", (replace(CANARY, percent_bp=SLOT_OF_B + 1),), (Verb.INSTALL, Reason.IN_COHORT),
        release=release("2", B)),
    Row("first one out", (replace(CANARY, percent_bp=SLOT_OF_B),), (Verb.NONE, Reason.NOT_IN_COHORT)),
    Row("share shrank, bundle stays", (replace(CANARY, percent_bp=0),), (Verb.KEEP, Reason.ALREADY_ACTIVE),
        having(B, A)),
    Row("limit not reached", (CANARY,), (Verb.NONE, Reason.SPEED_LIMIT),
        releases=with_release_2(limits=((0, SLOT_OF_B),), signed_at_s=int(NOW_S))),
    Row("limit not begun", (CANARY,), (Verb.NONE, Reason.SPEED_LIMIT),
        releases=with_release_2(limits=((10, 10_000),), signed_at_s=int(NOW_S) - 9)),
    Row("limit lifted by time", (CANARY,), (Verb.INSTALL, Reason.IN_COHORT),
        release=with_release_2(limits=((0, 0), (10, 10_000)), signed_at_s=int(NOW_S) - 10)[CANARY.bundle],
        releases=with_release_2(limits=((0, 0), (10, 10_000)), signed_at_s=int(NOW_S) - 10)),
    Row("too early", (STABLE, replace(CANARY, not_before_s=int(NOW_S) + 1)), (Verb.KEEP, Reason.ALREADY_ACTIVE),
        having(A)),
    Row("too early, nothing else", (replace(CANARY, not_before_s=int(NOW_S) + 1),), (Verb.NONE, Reason.TOO_EARLY)),
    Row("label missing", (replace(CANARY, selector=(("site", "south"),)),), (Verb.NONE, Reason.NOT_SELECTED)),
    Row("other class", (CANARY,), (Verb.NONE, Reason.OTHER_CLASS), facts=replace(FACTS, device_class="line")),
    Row("tried and refused before", (STABLE, CANARY), (Verb.INSTALL, Reason.IN_COHORT),
        CurrentModel("m", refused={("r2", B): Tries()}), release("1", A)),
    Row("refused before, stable active", (STABLE, CANARY), (Verb.KEEP, Reason.ALREADY_ACTIVE),
        CurrentModel("m", A, refused={("r2", B): Tries()})),
    Row("refused in another rollout", (CANARY,), (Verb.INSTALL, Reason.IN_COHORT),
        CurrentModel("m", A, refused={("r1", B): Tries()}), release("2", B)),
    Row("tried before, one more may be", (replace(CANARY, retries=1),), (Verb.INSTALL, Reason.IN_COHORT),
        CurrentModel("m", refused={("r2", B): Tries(1, NOW_S - 900)}), release("2", B)),
    Row("tried before, not yet again", (replace(CANARY, retries=1),), (Verb.NONE, Reason.REFUSED_BEFORE),
        CurrentModel("m", refused={("r2", B): Tries(1, NOW_S - 899)})),
    Row("tried before, the pause doubles", (replace(CANARY, retries=2),), (Verb.NONE, Reason.REFUSED_BEFORE),
        CurrentModel("m", refused={("r2", B): Tries(2, NOW_S - 1799)})),
    Row("tried too often", (replace(CANARY, retries=1),), (Verb.NONE, Reason.REFUSED_BEFORE),
        CurrentModel("m", refused={("r2", B): Tries(2, NOW_S - 1e9)})),
    Row("tried before, the clock went back", (replace(CANARY, retries=1),), (Verb.INSTALL, Reason.IN_COHORT),
        CurrentModel("m", refused={("r2", B): Tries(1, NOW_S + 1e6)}), release("2", B)),
    # turns
    Row("ramp not here yet", (RAMP,), (Verb.NONE, Reason.NOT_IN_COHORT)),
    Row("ramp is here", (replace(RAMP, stage_started_s=int(NOW_S) - 100),), (Verb.INSTALL, Reason.IN_COHORT),
        release=release("2", B)),
    Row("left out", (STABLE, replace(CANARY, exclude=(("site", "north"),))), (Verb.KEEP, Reason.ALREADY_ACTIVE),
        having(A)),
    Row("left out, nothing else", (replace(CANARY, exclude=(("id", "cam-1"),)),), (Verb.NONE, Reason.EXCLUDED)),
    Row("left out, and rolled back all the same", (STABLE, replace(BACK, exclude=(("site", "north"),))),
        (Verb.REVERT, Reason.FLEET_ROLLBACK), having(B, A), release("1", A)),
    Row("outside of the open hours", (LATER,), (Verb.NONE, Reason.CLOSED)),
    Row("outside, stable active", (STABLE, LATER), (Verb.KEEP, Reason.ALREADY_ACTIVE), having(A)),
    Row("outside, under way", (STABLE, LATER), (Verb.INSTALL, Reason.CLOSED), having(A, None, B), release("2", B)),
    Row("open where the device is", (LATER,), (Verb.INSTALL, Reason.IN_COHORT), release=release("2", B),
        facts=replace(FACTS, utc_offset_minutes=60)),
    Row("rolled back outside of the open hours", (STABLE, replace(BACK, open_hours=LATER.open_hours)),
        (Verb.REVERT, Reason.FLEET_ROLLBACK), having(B, A), release("1", A)),
    Row("stratum stopped, has it", (STABLE, STOPPED), (Verb.REVERT, Reason.STRATUM_STOPPED), having(B, A),
        release("1", A)),
    Row("stratum stopped, under way", (STABLE, STOPPED), (Verb.REVERT, Reason.STRATUM_STOPPED), having(A, None, B),
        release("1", A)),
    Row("stratum stopped, does not have it", (STOPPED,), (Verb.NONE, Reason.STRATUM_STOPPED), having(A)),
    Row("stratum stopped, an older directive does not bring it back", (deploy(1, "2", B), STOPPED),
        (Verb.NONE, Reason.STRATUM_STOPPED), having(A)),
    Row("another stratum stopped", (replace(STOPPED, stopped=("cam/cuda",)),), (Verb.INSTALL, Reason.IN_COHORT),
        release=release("2", B)),
    # beside
    Row("beside what answers", (STABLE, SHADOW), (Verb.BESIDE, Reason.BESIDE), having(A), release("2", B)),
    Row("beside already", (STABLE, SHADOW), (Verb.BESIDE, Reason.BESIDE), having(A, None, B), release("2", B)),
    Row("beside whatever answers", (SHADOW,), (Verb.BESIDE, Reason.BESIDE), having("d" * 64), release("2", B)),
    Row("in the share that answers", (STABLE, replace(SHADOW, percent_bp=10_000)), (Verb.INSTALL, Reason.IN_COHORT),
        having(A, None, B), release("2", B)),
    Row("not among those beside", (replace(SHADOW, beside_bp=SLOT_OF_B),), (Verb.NONE, Reason.NOT_IN_COHORT),
        having(A)),
    Row("a canary is never beside", (replace(SHADOW, mode="canary"),), (Verb.NONE, Reason.NOT_IN_COHORT), having(A)),
    Row("nothing to be beside of", (SHADOW,), (Verb.NONE, Reason.NOTHING_ACTIVE)),
    Row("first what is to answer", (STABLE, SHADOW), (Verb.INSTALL, Reason.IN_COHORT), release=release("1", A)),
    Row("first what is to answer, then beside", (replace(STABLE, older=True), SHADOW),
        (Verb.INSTALL, Reason.IN_COHORT), having(C), release("1", A)),
    Row("beside no faster than the release allows", (SHADOW,), (Verb.NONE, Reason.SPEED_LIMIT), having(A),
        releases=with_release_2(limits=((0, SLOT_OF_B),), signed_at_s=int(NOW_S))),
    Row("beside outside of the open hours", (replace(SHADOW, open_hours=LATER.open_hours),),
        (Verb.NONE, Reason.CLOSED), having(A)),
    Row("held beside outside of the open hours", (replace(SHADOW, open_hours=LATER.open_hours),),
        (Verb.BESIDE, Reason.CLOSED), having(A, None, B), release("2", B)),
    Row("beside, halted", (STABLE, replace(SHADOW, halt=True)), (Verb.NONE, Reason.HALTED), having(A, None, B)),
    Row("beside, rolled back", (STABLE, replace(SHADOW, kind="rollback")), (Verb.REVERT, Reason.FLEET_ROLLBACK),
        having(A, None, B), release("1", A)),
    Row("beside, stratum stopped", (STABLE, replace(SHADOW, stopped=("cam/cpu",))),
        (Verb.REVERT, Reason.STRATUM_STOPPED), having(A, None, B), release("1", A)),
    Row("beside of a bundle that cannot run here", (STABLE, SHADOW), (Verb.REFUSE, Reason.AGENT_VERSION), having(A),
        releases=with_release_2(agent=">=9")),
    # halt
    Row("halted, has it", (replace(CANARY, halt=True),), (Verb.KEEP, Reason.ALREADY_ACTIVE), having(B, A)),
    Row("halted, under way", (STABLE, replace(CANARY, halt=True)), (Verb.NONE, Reason.HALTED), having(A, None, B)),
    Row("halted, has another", (STABLE, replace(CANARY, halt=True)), (Verb.KEEP, Reason.ALREADY_ACTIVE), having(A)),
    Row("halted, has nothing", (replace(CANARY, halt=True),), (Verb.NONE, Reason.HALTED)),
    # rollback
    Row("rolled back to the stable bundle", (STABLE, BACK), (Verb.REVERT, Reason.FLEET_ROLLBACK), having(B, A),
        release("1", A)),
    Row("rolled back to the previous slot", (BACK,), (Verb.REVERT, Reason.FLEET_ROLLBACK), having(B, A)),
    Row("rolled back while under way", (STABLE, BACK), (Verb.REVERT, Reason.FLEET_ROLLBACK), having(A, None, B),
        release("1", A)),
    Row("rolled back while the first is under way", (BACK,), (Verb.REVERT, Reason.FLEET_ROLLBACK),
        having(None, None, B)),
    Row("nothing to go back to", (BACK,), (Verb.KEEP, Reason.NOTHING_TO_REVERT_TO), having(B)),
    Row("previous was rolled back too", (replace(STABLE, kind="rollback"), BACK),
        (Verb.KEEP, Reason.NOTHING_TO_REVERT_TO), having(B, A)),
    Row("rolled back elsewhere", (STABLE, BACK), (Verb.KEEP, Reason.ALREADY_ACTIVE), having(A, B)),
    Row("an older directive does not bring it back", (deploy(1, "2", B), BACK), (Verb.NONE, Reason.WITHDRAWN),
        having(A, B)),
    Row("a newer directive does", (BACK, deploy(3, "2", B)), (Verb.INSTALL, Reason.IN_COHORT), having(A, B),
        release("2", B)),
    Row("rollback meant for others", (CANARY, replace(BACK, number=3, id="r3", selector=(("site", "south"),))),
        (Verb.KEEP, Reason.ALREADY_ACTIVE), having(B, A)),
    Row("back below the floor, from the previous slot", (STABLE, BACK), (Verb.REVERT, Reason.FLEET_ROLLBACK),
        having(B, A), release("1", A), floor={"m": 2}),
    Row("not back below the floor, from afar", (STABLE, BACK), (Verb.REVERT, Reason.FLEET_ROLLBACK),
        having(B, C), None, floor={"m": 2}),
    # refusals
    Row("no release", (CANARY,), (Verb.REFUSE, Reason.NOT_RELEASED), releases={}),
    Row("digests differ", (CANARY,), (Verb.REFUSE, Reason.BOTH_DISAGREE), releases=with_release_2(sha256=C)),
    Row("lengths differ", (replace(CANARY, length=99),), (Verb.REFUSE, Reason.BOTH_DISAGREE)),
    Row("models differ", (replace(CANARY, model="other"),), (Verb.REFUSE, Reason.BOTH_DISAGREE),
        CurrentModel("other")),
    Row("hardware", (CANARY,), (Verb.REFUSE, Reason.WRONG_HARDWARE), releases=with_release_2(hardware=("aarch64",))),
    Row("agent too old", (CANARY,), (Verb.REFUSE, Reason.AGENT_VERSION), releases=with_release_2(agent=">=0.2")),
    Row("runtime too old", (CANARY,), (Verb.REFUSE, Reason.ONNXRUNTIME_VERSION),
        releases=with_release_2(onnxruntime=">=1.23")),
    Row("specifier that is none", (CANARY,), (Verb.REFUSE, Reason.AGENT_VERSION), releases=with_release_2(agent="?")),
    Row("version that is none", (CANARY,), (Verb.REFUSE, Reason.ONNXRUNTIME_VERSION),
        releases=with_release_2(onnxruntime=">=1"), facts=replace(FACTS, onnxruntime_version="")),
    Row("below the floor", (STABLE,), (Verb.REFUSE, Reason.BELOW_FLOOR), floor={"m": 2}),
    Row("at the floor", (CANARY,), (Verb.INSTALL, Reason.IN_COHORT), release=release("2", B), floor={"m": 2}),
    Row("refused, stable still wanted", (STABLE, CANARY), (Verb.INSTALL, Reason.IN_COHORT), having(),
        release("1", A), releases=with_release_2(agent=">=9")),
    Row("refused, stable active", (STABLE, CANARY), (Verb.REFUSE, Reason.AGENT_VERSION), having(A),
        releases=with_release_2(agent=">=9")),
    # older releases
    Row("older than what is active", (STABLE,), (Verb.REFUSE, Reason.OLDER_RELEASE), having(B)),
    Row("older, and meant", (replace(STABLE, older=True),), (Verb.INSTALL, Reason.IN_COHORT), having(B),
        release("1", A)),
    Row("older than a bundle that is not released any more", (STABLE,), (Verb.INSTALL, Reason.IN_COHORT),
        having("d" * 64), release("1", A)),
    Row("older, to be held beside", (replace(STABLE, mode="shadow", percent_bp=0, beside_bp=10_000),),
        (Verb.REFUSE, Reason.OLDER_RELEASE), having(B)),
    Row("older by a rollback", (STABLE, BACK), (Verb.REVERT, Reason.FLEET_ROLLBACK), having(B), release("1", A)),
    # block list
    Row("blocked", (CANARY,), (Verb.REFUSE, Reason.BLOCKED), emergency=BLOCKS_B),
    Row("blocked, stable wanted", (STABLE, CANARY), (Verb.INSTALL, Reason.IN_COHORT), release=release("1", A),
        emergency=BLOCKS_B),
    Row("blocked and not its turn", (replace(CANARY, percent_bp=SLOT_OF_B),), (Verb.NONE, Reason.NOT_IN_COHORT),
        emergency=BLOCKS_B),
    Row("blocked, under way", (STABLE, CANARY), (Verb.REVERT, Reason.BLOCKED), having(A, None, B), emergency=BLOCKS_B),
    Row("blocked, active, back to the previous slot", (CANARY,), (Verb.REVERT, Reason.BLOCKED), having(B, A),
        emergency=BLOCKS_B),
    Row("blocked, active, another is wanted", (STABLE, CANARY), (Verb.REVERT, Reason.BLOCKED), having(B),
        release("1", A), emergency=BLOCKS_B),
    Row("blocked, active, nothing to go to", (CANARY,), (Verb.KEEP, Reason.BLOCKED), having(B), emergency=BLOCKS_B),
    Row("blocked, active, the previous one is blocked too", (CANARY,), (Verb.KEEP, Reason.BLOCKED), having(B, A),
        emergency=Emergencies({A: "", B: "leaks"})),
    Row("blocked, not the way back of a rollback", (STABLE, BACK), (Verb.KEEP, Reason.NOTHING_TO_REVERT_TO),
        having(B, A), emergency=Emergencies({A: "leaks"})),
    Row("limit lifted", (CANARY,), (Verb.INSTALL, Reason.IN_COHORT),
        release=with_release_2(limits=((9, 10_000),), signed_at_s=int(NOW_S))[CANARY.bundle],
        releases=with_release_2(limits=((9, 10_000),), signed_at_s=int(NOW_S)),
        emergency=Emergencies(lifted=frozenset({B}), expires_s=NOW_S + 1)),
    Row("limit lifted until now", (CANARY,), (Verb.NONE, Reason.SPEED_LIMIT),
        releases=with_release_2(limits=((9, 10_000),), signed_at_s=int(NOW_S)),
        emergency=Emergencies(lifted=frozenset({B}), expires_s=NOW_S)),
    # freshness
    Row("stale", (CANARY,), (Verb.NONE, Reason.STALE_METADATA), expires_s=NOW_S),
    Row("stale, under way", (CANARY,), (Verb.INSTALL, Reason.STALE_METADATA), having(A, None, B), release("2", B),
        expires_s=NOW_S),
    Row("stale, to be held beside", (SHADOW,), (Verb.NONE, Reason.STALE_METADATA), having(A), expires_s=NOW_S),
    Row("stale, rolled back all the same", (STABLE, BACK), (Verb.REVERT, Reason.FLEET_ROLLBACK), having(B, A),
        release("1", A), expires_s=NOW_S),
    Row("stale, active already", (CANARY,), (Verb.KEEP, Reason.ALREADY_ACTIVE), having(B), expires_s=NOW_S),
    # nothing said
    Row("deployment without a directive", (), (Verb.NONE, Reason.NO_DIRECTIVE), having(A, None, B)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_rule(row: Row) -> None:
    model = row.have.model
    world = World(row.releases, row.facts, row.floor, NOW_S, row.emergency, row.expires_s)
    decisions = decide_in(world, row.directives, {model: row.have})
    assert [(entry.verb, entry.reason) for entry in decisions] == [row.expect]
    decision = decisions[0]
    assert decision.release == row.release
    assert decision.model == model
    assert decision.text
    assert (decision.directive is None) == (row.expect[1] is Reason.NO_DIRECTIVE)


def test_every_reason_has_a_row() -> None:
    assert {row.expect[1] for row in ROWS} == set(Reason)


def test_a_blocked_bundle_that_no_directive_names_is_left_all_the_same() -> None:
    world = World(RELEASES, FACTS, {}, NOW_S, BLOCKS_B)
    (decision,) = decide_in(world, [], {"m": having(B, A), "other": CurrentModel("other", C)})
    assert (decision.verb, decision.reason) == (Verb.REVERT, Reason.BLOCKED)
    assert (decision.leaves, decision.directive) == (B, None)


def test_a_blocked_previous_bundle_is_forgotten_whatever_else_is_decided() -> None:
    world = World(RELEASES, FACTS, {}, NOW_S, BLOCKS_B)
    (decision,) = decide_in(world, [deploy(3, "3", C)], {"m": having(C, B)})
    assert (decision.verb, decision.forgets_previous) == (Verb.KEEP, True)


def test_refused_before_and_nothing_else_wants_nothing() -> None:
    have = CurrentModel("m", refused={("r2", B): Tries()})
    (decision,) = decide([CANARY], RELEASES, FACTS, {"m": have}, {}, NOW_S)
    assert (decision.verb, decision.reason) == (Verb.NONE, Reason.REFUSED_BEFORE)


def test_texts_name_the_rollout_and_the_thing() -> None:
    (decision,) = decide([CANARY], with_release_2(agent=">=9"), FACTS, {}, {}, NOW_S)
    assert decision.text == "r2: bundles/cam/m-2 needs an agent >=9; this one is 0.1.0"


def test_one_decision_a_model_in_order_of_names() -> None:
    other = replace(CANARY, model="a", id="r9", number=9)
    decisions = decide([STABLE, other], RELEASES, FACTS, {}, {}, NOW_S)
    assert [decision.model for decision in decisions] == ["a", "m"]


def test_a_model_that_nothing_is_said_about_is_left_alone() -> None:
    assert decide([], RELEASES, FACTS, {"m": having(A)}, {}, NOW_S) == ()


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ((), True),
        ((("site", "north"),), True),
        ((("site", "north"), ("class", "cam"), ("hardware", "x86_64"), ("id", "cam-1")), True),
        ((("site", "north"), ("id", "cam-2")), False),
        ((("room", "1"),), False),
    ],
)
def test_selector(selector: tuple[tuple[str, str], ...], selected: bool) -> None:
    assert selects(selector, FACTS) is selected


def test_a_label_cannot_pretend_to_be_another_class() -> None:
    assert not selects((("class", "line"),), replace(FACTS, labels={"class": "line"}))


# --- properties -----------------------------------------------------------------------------------

DIGESTS = (A, B, C)
VERSION_OF = {A: "1", B: "2", C: "3"}


@st.composite
def some_directives(draw: st.DrawFn) -> list[Directive]:
    numbers = draw(st.lists(st.integers(1, 9), unique=True, max_size=5))
    return [
        deploy(
            number,
            VERSION_OF[sha256],
            sha256,
            kind=draw(st.sampled_from(("deploy", "rollback"))),
            halt=draw(st.booleans()),
            percent_bp=draw(st.sampled_from((0, SLOT_OF_B, SLOT_OF_B + 1, 10_000))),
            selector=draw(st.sampled_from(((), (("site", "south"),)))),
            mode=draw(st.sampled_from(("canary", "shadow"))),
            beside_bp=draw(st.sampled_from((0, SLOT_OF_B, SLOT_OF_B + 1, 10_000))),
            stopped=draw(st.sampled_from(((), ("cam/cpu",)))),
            open_hours=draw(st.sampled_from(((), LATER.open_hours))),
        )
        for number in numbers
        for sha256 in [draw(st.sampled_from(DIGESTS))]
    ]


slots = st.sampled_from((None, *DIGESTS))
standings = st.builds(having, slots, slots, slots)


def follow(decision: Decision, have: CurrentModel) -> CurrentModel:
    """What an updater that succeeds at everything makes of a decision."""
    if decision.verb is Verb.INSTALL:
        assert decision.release is not None
        return having(decision.release.sha256, have.active_sha256)
    if decision.verb is Verb.BESIDE:
        assert decision.release is not None
        return replace(have, pending_sha256=decision.release.sha256, pending_rollout_id="r2")
    if decision.verb is Verb.REVERT:
        assert decision.directive is not None
        if have.active_sha256 != decision.directive.sha256:
            return replace(have, pending_sha256=None, pending_rollout_id=None)
        to = decision.release.sha256 if decision.release else have.previous_sha256
        return having(to, None)
    return replace(have, pending_sha256=None, pending_rollout_id=None)


@given(some_directives(), standings)
def test_following_a_decision_settles(directives: list[Directive], have: CurrentModel) -> None:
    """A device that does what it is told comes to rest: no swinging between bundles."""
    for _ in range(4):
        decisions = decide(directives, RELEASES, FACTS, {"m": have}, {}, NOW_S)
        before, have = have, follow(decisions[0], have) if decisions else have
    assert before == have


@given(some_directives(), standings, st.randoms())
def test_asked_twice_it_answers_the_same(
    directives: list[Directive], have: CurrentModel, random: Any
) -> None:
    answer = decide(directives, RELEASES, FACTS, {"m": have}, {}, NOW_S)
    random.shuffle(directives)
    assert decide(directives, RELEASES, FACTS, {"m": have}, {}, NOW_S) == answer


@given(some_directives(), standings, st.integers(0, 4))
def test_what_is_installed_is_allowed(
    directives: list[Directive], have: CurrentModel, floor: int
) -> None:
    for decision in decide(directives, RELEASES, FACTS, {"m": have}, {"m": floor}, NOW_S):
        if decision.verb not in (Verb.INSTALL, Verb.BESIDE):
            continue
        wanted, directive = decision.release, decision.directive
        assert wanted is not None
        assert directive is not None
        assert wanted.release >= floor
        held = decision.verb is Verb.BESIDE
        share_bp = directive.beside_bp if held else directive.percent_bp
        assert slot_of(wanted.sha256, FACTS.device_id) < share_bp
        assert not held or (directive.mode != "canary" and have.active_sha256 is not None)
        assert not directive.stopped
        assert not directive.open_hours or have.pending_sha256 == wanted.sha256
        assert not directive.halt
        assert directive.kind == "deploy"
        assert not directive.selector


@given(some_directives(), standings)
def test_nothing_is_left_without_a_rollback(
    directives: list[Directive], have: CurrentModel
) -> None:
    deploys = [entry for entry in directives if entry.kind == "deploy" and not entry.stopped]
    decisions = decide(deploys, RELEASES, FACTS, {"m": have}, {}, NOW_S)
    assert all(decision.verb is not Verb.REVERT for decision in decisions)
