"""Each strategy as the fields of one directive a stage, and the stages that are none of it."""

from dataclasses import replace
from typing import Any

import pytest

from agent.trust import BundleRelease, CurrentModel, DeviceFacts, Verb, decide, slot_of
from fleet.rollout.directives import desired_directives
from fleet.rollout.parsing import parse_spec
from fleet.rollout.spec import ALL_BP, DEFAULT_STAGES, RolloutSpec, Stage, StageKind, Strategy
from fleet.rollout.states import State
from fleet.rollout.strategies import Wanted, kind_of, misfit, share_before, wanted
from tests.fleet.rollout.rollout_builders import rollout

BUNDLE = "bundles/cam/digits-2"


def spec(strategy: Strategy, *stages: Stage, **changes: Any) -> RolloutSpec:
    return RolloutSpec("digits", BUNDLE, stages, strategy=strategy, **changes)


SHADOW = Stage(2000, 60.0, StageKind.SHADOW, traffic_bp=1000)
ARM = Stage(1000, 60.0, StageKind.AB, traffic_bp=5000)
STANDBY = Stage(ALL_BP, 60.0, StageKind.STANDBY)
TEN, ALL = Stage(1000, 60.0), Stage(ALL_BP, 60.0)

TABLE = [
    (spec(Strategy.CANARY, TEN, ALL), [Wanted(percent_bp=1000), Wanted(percent_bp=ALL_BP)]),
    (
        spec(Strategy.SHADOW_THEN_CANARY, SHADOW, TEN, ALL),
        [
            Wanted("shadow", 0, 2000, 1000),
            Wanted(percent_bp=1000),
            Wanted(percent_bp=ALL_BP),
        ],
    ),
    (
        spec(Strategy.AB, ARM, ALL, routing_key="user"),
        [Wanted("ab", 0, 1000, 5000, "user"), Wanted(percent_bp=ALL_BP)],
    ),
    (
        spec(Strategy.BLUE_GREEN, STANDBY, TEN, ALL),
        [
            Wanted("blue-green", 0, ALL_BP),
            Wanted("blue-green", 1000, ALL_BP),
            Wanted("blue-green", ALL_BP, ALL_BP),
        ],
    ),
    (spec(Strategy.ALL_AT_ONCE, ALL), [Wanted(percent_bp=ALL_BP)]),
]


@pytest.mark.parametrize(("asked", "expected"), TABLE, ids=lambda value: str(value)[:40])
def test_what_each_stage_says(asked: RolloutSpec, expected: list[Wanted]) -> None:
    assert misfit(asked.strategy, asked.stages) == ""
    assert [wanted(asked, index) for index in range(len(asked.stages))] == expected


@pytest.mark.parametrize("strategy", Strategy)
def test_the_default_stages_are_of_their_strategy(strategy: Strategy) -> None:
    stages = DEFAULT_STAGES[strategy]
    assert misfit(strategy, stages) == ""
    kinds = [kind_of(strategy, number, len(stages)) for number in range(1, len(stages) + 1)]
    assert kinds == [stage.kind for stage in stages]
    parsed = parse_spec({"bundle": BUNDLE, "strategy": strategy})
    assert parsed.stages == stages
    assert wanted(parsed, len(stages) - 1).percent_bp == ALL_BP


@pytest.mark.parametrize(
    ("strategy", "stages", "says"),
    [
        (Strategy.CANARY, (SHADOW, ALL), "stage 1 is of kind shadow"),
        (Strategy.AB, (SHADOW, ALL), "stage 1 is of kind shadow"),
        (Strategy.SHADOW_THEN_CANARY, (TEN, ALL), "needs stages of kind shadow and then"),
        (Strategy.SHADOW_THEN_CANARY, (SHADOW,), "needs stages of kind shadow and then"),
        (Strategy.AB, (TEN, ARM, ALL), "come before those of kind canary"),
        (Strategy.BLUE_GREEN, (replace(STANDBY, percent_bp=5000), ALL), "at 100 %"),
        (Strategy.BLUE_GREEN, (STANDBY, STANDBY, ALL), "one stage of kind standby"),
        (Strategy.ALL_AT_ONCE, (TEN, ALL), "all-at-once has one stage, not 2"),
    ],
)
def test_stages_that_are_no_such_strategy(
    strategy: Strategy, stages: tuple[Stage, ...], says: str
) -> None:
    assert says in misfit(strategy, stages)


def test_a_ramp_starts_from_the_stage_before() -> None:
    ramped = replace(ALL, devices_per_minute=5.0, ramp_s=600.0, ramp_doublings=3)
    asked = spec(Strategy.CANARY, TEN, ramped)
    assert wanted(asked, 1) == Wanted(percent_bp=ALL_BP, from_bp=1000, ramp_s=600, ramp_doublings=3)
    after_shadow = spec(Strategy.SHADOW_THEN_CANARY, SHADOW, ramped)
    assert share_before(after_shadow, 1) == 0
    assert wanted(after_shadow, 1).from_bp == 0


# --- as the devices read it -----------------------------------------------------------------------

OLD, NEW = "bundles/cam/digits-1", BUNDLE
SHAS = {OLD: f"{1:064x}", NEW: f"{2:064x}"}
RELEASES = {
    path: BundleRelease(
        path=path, sha256=sha256, length=1, model="digits", version=path[-1], device_class="cam"
    )
    for path, sha256 in SHAS.items()
}
FLEET = [f"cam-{number}" for number in range(200)]
STABLE = rollout(
    1, bundle=OLD, manifest_sha256=SHAS[OLD], spec=spec(Strategy.CANARY, ALL), state=State.PROMOTED
)


def verbs(asked: RolloutSpec, stage: int, **changes: Any) -> dict[str, set[Verb]]:
    """What devices on the old bundle do in this stage, by where their slot is."""
    newer = rollout(2, bundle=NEW, manifest_sha256=SHAS[NEW], spec=asked, stage=stage, **changes)
    said = desired_directives([STABLE, newer], {OLD: 1, NEW: 1})
    found: dict[str, set[Verb]] = {"in": set(), "out": set()}
    for device_id in FLEET:
        facts = DeviceFacts(device_id, "cam", "x86_64", execution_provider="cpu")
        have = {"digits": CurrentModel("digits", SHAS[OLD])}
        (decision,) = decide(said, RELEASES, facts, have, {}, 2e9)
        inside = slot_of(SHAS[NEW], device_id) < asked.stages[stage].percent_bp
        found["in" if inside else "out"].add(decision.verb)
    return found


@pytest.mark.parametrize(
    ("asked", "stage", "inside", "outside"),
    [
        (TABLE[0][0], 0, Verb.INSTALL, Verb.KEEP),
        (TABLE[1][0], 0, Verb.BESIDE, Verb.KEEP),
        (TABLE[1][0], 1, Verb.INSTALL, Verb.KEEP),
        (TABLE[2][0], 0, Verb.BESIDE, Verb.KEEP),
        (TABLE[2][0], 1, Verb.INSTALL, None),
        (TABLE[3][0], 0, Verb.BESIDE, None),
        (TABLE[3][0], 1, Verb.INSTALL, Verb.BESIDE),
        (TABLE[3][0], 2, Verb.INSTALL, None),
        (TABLE[4][0], 0, Verb.INSTALL, None),
    ],
)
def test_what_devices_do_in_each_stage(
    asked: RolloutSpec, stage: int, inside: Verb, outside: Verb | None
) -> None:
    assert verbs(asked, stage) == {"in": {inside}, "out": {outside} - {None}}


@pytest.mark.parametrize("state", [State.PAUSED, State.ROLLED_BACK, State.WAITING])
def test_nothing_is_begun_while_it_is_halted_taken_back_or_waits(state: State) -> None:
    for asked, _ in TABLE:
        for stage in range(len(asked.stages)):
            found = verbs(asked, stage, state=state)
            assert not {Verb.INSTALL, Verb.BESIDE} & (found["in"] | found["out"])


def test_a_stopped_stratum_goes_back_to_what_was_promoted_before() -> None:
    for state in (State.RUNNING, State.PROMOTED):
        newer = rollout(
            2, bundle=NEW, manifest_sha256=SHAS[NEW], spec=TABLE[0][0], stage=1, state=state,
            details={"stopped": ["cam/cuda"]},
        )  # fmt: skip
        said = desired_directives([STABLE, newer], {OLD: 1, NEW: 1})
        have = {"digits": CurrentModel("digits", SHAS[NEW], SHAS[OLD])}
        for provider, verb in (("cuda", Verb.REVERT), ("cpu", Verb.KEEP)):
            facts = DeviceFacts("cam-1", "cam", "x86_64", execution_provider=provider)
            (decision,) = decide(said, RELEASES, facts, have, {}, 2e9)
            assert decision.verb is verb
