"""What the rollout role says follows from the rollouts alone."""

from typing import Any

import pytest

from agent.trust import BundleRelease, CurrentModel, DeviceFacts, Verb, decide
from fleet.errors import ServerError
from fleet.rollout.directives import desired_directives, is_superseded, stable_before
from fleet.rollout.record import Rollout
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
