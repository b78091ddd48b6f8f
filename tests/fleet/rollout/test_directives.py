"""What the rollout role says follows from the rollouts alone."""

from dataclasses import replace
from typing import Any

import pytest

from agent.trust import BundleRelease, CurrentModel, DeviceFacts, Directive, Verb, decide
from fleet.errors import ServerError
from fleet.rollout.directives import (
    desired_directives,
    is_superseded,
    may_share_devices,
    stable_before,
)
from fleet.rollout.record import Rollout
from fleet.rollout.spec import Stage, StageKind, Strategy
from fleet.rollout.states import State
from tests.fleet.rollout.rollout_builders import rollout, spec


def of(number: int, state: State, version: int = 0, **spec_changes: Any) -> Rollout:
    version = version or number
    bundle = f"bundles/cam/digits-{version}"
    stage = 2 if state is State.PROMOTED else 0
    return rollout(
        number,
        bundle=bundle,
        manifest_sha256=f"{version:064x}",
        state=state,
        stage=stage,
        spec=spec(bundle=bundle, **spec_changes),
    )


BYTES = {f"bundles/cam/digits-{version}": 100 + version for version in range(10)}
BYTES["bundles/edge/digits-9"] = 1
NORTH = (("region", "north"),)


def said(*rollouts: Rollout) -> list[tuple[str, str, int, bool]]:
    return [(d.id, d.kind, d.percent_bp, d.halt) for d in desired_directives(list(rollouts), BYTES)]


def test_the_stable_one_stays_beside_the_canary() -> None:
    assert said(of(2, State.RUNNING), of(1, State.PROMOTED)) == [
        ("r1", "deploy", 10_000, False),
        ("r2", "deploy", 1000, False),
    ]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.RUNNING, ("r2", "deploy", 1000, False)),
        (State.PAUSED, ("r2", "deploy", 1000, True)),
        (State.ABORTED, ("r2", "deploy", 1000, True)),
        (State.ROLLED_BACK, ("r2", "rollback", 0, False)),
    ],
)
def test_each_state(state: State, expected: tuple[str, str, int, bool]) -> None:
    assert said(of(1, State.PROMOTED), of(2, state))[1] == expected


def test_a_promoted_one_replaces_all_before_it() -> None:
    older = [of(1, State.PROMOTED), of(2, State.ROLLED_BACK), of(3, State.ABORTED)]
    assert said(*older, of(4, State.PROMOTED)) == [("r4", "deploy", 10_000, False)]


def test_only_where_it_reaches_every_device_of_the_older() -> None:
    everywhere, north = of(1, State.PROMOTED), of(2, State.PROMOTED, selector=NORTH)
    assert not is_superseded(everywhere, [everywhere, north])
    again = of(3, State.PROMOTED)
    assert is_superseded(north, [everywhere, north, again])
    assert [d[0] for d in said(everywhere, north, again)] == ["r3"]


def test_another_model_or_class_replaces_nothing() -> None:
    one = of(1, State.PROMOTED)
    bundle = "bundles/edge/digits-9"
    other = rollout(2, bundle=bundle, spec=spec(bundle=bundle), state=State.PROMOTED, stage=2)
    assert [d[0] for d in said(one, other)] == ["r1", "r2"]
    assert stable_before(of(3, State.RUNNING), [one, other]) == one


def test_rolling_back_the_promoted_one_brings_its_predecessor_back() -> None:
    assert said(of(1, State.PROMOTED), of(2, State.ROLLED_BACK)) == [
        ("r1", "deploy", 10_000, False),
        ("r2", "rollback", 0, False),
    ]


def test_a_bundle_the_database_lost_is_an_error_not_a_gap() -> None:
    with pytest.raises(ServerError, match="publish it again"):
        desired_directives([of(1, State.RUNNING)], {})


def device_decides(rollouts: list[Rollout], active: int | None, previous: int | None) -> Any:
    """What the device's own function makes of it."""
    releases = {
        path: BundleRelease(
            path=path,
            sha256=f"{int(path[-1]):064x}",
            length=length,
            model="digits",
            version=path[-1],
            device_class="cam",
        )
        for path, length in BYTES.items()
        if path.startswith("bundles/cam/")
    }
    have = CurrentModel(
        "digits",
        active_sha256=None if active is None else f"{active:064x}",
        previous_sha256=None if previous is None else f"{previous:064x}",
    )
    facts = DeviceFacts("cam-1", "cam", "x86_64")
    (decision,) = decide(
        desired_directives(rollouts, BYTES), releases, facts, {"digits": have}, {}, 2e9
    )
    return decision


def test_a_device_follows_what_is_said_through_a_whole_life() -> None:
    full = of(2, State.RUNNING)
    full = Rollout(**{**_fields(full), "stage": 2})
    first = of(1, State.PROMOTED)
    assert device_decides([first], None, None).verb is Verb.INSTALL
    assert device_decides([first, full], 1, None).release.path.endswith("digits-2")
    back = Rollout(**{**_fields(full), "state": State.ROLLED_BACK})
    decision = device_decides([first, back], 2, 1)
    assert decision.verb is Verb.REVERT
    assert decision.release.path.endswith("digits-1")
    assert device_decides([first, back], 1, 2).verb is Verb.KEEP
    aborted = Rollout(**{**_fields(full), "state": State.ABORTED})
    assert device_decides([first, aborted], 2, 1).verb is Verb.KEEP
    assert device_decides([first, aborted], 1, None).verb is Verb.KEEP


def _fields(one: Rollout) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Rollout.__dataclass_fields__}


def directive_of(one: Rollout) -> Directive:
    (directive,) = desired_directives([one], BYTES)
    return directive


def test_a_promotion_reaches_the_hold_back() -> None:
    stages = (Stage(1000, 60.0), Stage(9500, 60.0))
    asked = {"stages": stages, "hold_back": "5%", "hold_back_bp": 500}
    last = replace(of(1, State.RUNNING, **asked), stage=1)
    assert directive_of(last).percent_bp == 9500
    assert directive_of(replace(last, state=State.PROMOTED)).percent_bp == 10_000


def test_what_waits_says_nothing_and_what_is_superseded_halts() -> None:
    assert said(of(1, State.WAITING)) == []
    assert said(of(1, State.SUPERSEDED)) == [("r1", "deploy", 1000, True)]


def test_windows_exclusions_strata_and_retries_are_said_until_a_rollback() -> None:
    asked = {"exclude": (("id", "cam-7"),), "open_hours": ("01:00-05:00",), "retries": 2}
    running = replace(of(1, State.RUNNING, **asked), details={"stopped": ["cam/cuda"]})
    says = directive_of(running)
    assert (says.exclude, says.open_hours) == (asked["exclude"], asked["open_hours"])
    assert (says.stopped, says.retries) == (("cam/cuda",), 2)
    assert Directive.from_json(says.to_json()) == says
    back = directive_of(replace(running, state=State.ROLLED_BACK))
    assert (back.kind, back.percent_bp, back.open_hours, back.stopped) == ("rollback", 0, (), ())
    assert back.exclude == asked["exclude"]


def test_a_ramp_begins_with_its_stage() -> None:
    ramped = Stage(10_000, 660.0, devices_per_minute=5.0, ramp="linear", ramp_s=600.0)
    says = directive_of(of(1, State.RUNNING, stages=(ramped,)))
    assert (says.stage_started_s, says.ramp_s, says.from_bp) == (1000, 600, 0)
    done = directive_of(of(1, State.PROMOTED, stages=(Stage(1, 1.0), Stage(2, 1.0), ramped)))
    assert (done.stage_started_s, done.ramp_s) == (0, 0)


def test_blue_green_rolls_back_as_blue_green() -> None:
    stages = (Stage(10_000, 60.0, StageKind.STANDBY), Stage(10_000, 60.0))
    asked = {"strategy": Strategy.BLUE_GREEN, "stages": stages}
    flipped = replace(of(1, State.RUNNING, **asked), stage=1)
    says = directive_of(flipped)
    assert (says.mode, says.percent_bp, says.beside_bp) == ("blue-green", 10_000, 10_000)
    back = directive_of(replace(flipped, state=State.ROLLED_BACK))
    assert (back.mode, back.kind, back.percent_bp, back.beside_bp) == (
        "blue-green",
        "rollback",
        0,
        0,
    )


@pytest.mark.parametrize(
    ("older", "newer", "details", "replaced"),
    [
        ({}, {}, {}, True),
        ({}, {}, {"stopped": ["cam/cuda"]}, False),
        ({}, {"exclude": (("site", "lab"),)}, {}, False),
        ({"exclude": (("site", "lab"),)}, {"exclude": (("site", "lab"),)}, {}, True),
        ({"selector": (("site", "roof"),)}, {"exclude": (("site", "lab"),)}, {}, True),
        ({"exclude": (("site", "lab"),)}, {}, {}, True),
    ],
)
def test_who_is_left_out_still_follows_the_older_one(
    older: dict[str, Any], newer: dict[str, Any], details: dict[str, Any], replaced: bool
) -> None:
    one = of(1, State.PROMOTED, **older)
    two = replace(of(2, State.PROMOTED, **newer), details=details)
    assert is_superseded(one, [one, two]) is replaced


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ({}, {}, True),
        ({"selector": (("site", "a"),)}, {"selector": (("site", "b"),)}, False),
        ({"selector": (("site", "a"),)}, {"exclude": (("site", "a"),)}, False),
        ({"exclude": (("site", "a"),)}, {"selector": (("site", "a"),)}, False),
        ({"selector": (("site", "a"),)}, {"exclude": (("site", "b"),)}, True),
        ({"model": "vad"}, {}, False),
        ({"bundle": "bundles/edge/digits-9"}, {}, False),
    ],
)
def test_who_may_share_devices(one: dict[str, Any], other: dict[str, Any], share: bool) -> None:
    assert may_share_devices(spec(**one), spec(**other)) is share
    assert may_share_devices(spec(**other), spec(**one)) is share
