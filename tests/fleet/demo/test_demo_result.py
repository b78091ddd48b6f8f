"""The demo says ok only when the good one was promoted, the bad one rolled back, and no request failed."""

import pytest

from fleet.demo.digits import DigitsSplit
from fleet.demo.result import DemoResult, RolloutResult, summarise
from fleet.demo.traffic import Sample, Traffic, score


def rollout(version: str, state: str, began_s: float) -> RolloutResult:
    return RolloutResult(
        f"r{version}", version, state, "why", 7, began_s, began_s + 10, began_s + 12
    )


def result(states: tuple[str, str, str], samples: list[Sample]) -> DemoResult:
    nothing = DigitsSplit(*([None] * 4))  # type: ignore[list-item]
    traffic = Traffic(nothing, 1.0, samples=samples)
    rollouts = [
        rollout(f"{number}.0.0", state, 100.0 * number) for number, state in enumerate(states, 1)
    ]
    return summarise(rollouts, traffic, {}, fleet_size=20, duration_s=5.0)


GOOD = ("promoted", "promoted", "rolled_back")
ANSWERED = [Sample(at_s, "d", "2.0.0", at_s != 305, 2.0) for at_s in range(290, 320)]


def test_a_good_run_is_ok_and_its_numbers_are_the_samples() -> None:
    found = result(GOOD, ANSWERED)
    said = found.to_json()
    assert found.ok
    assert said["requests"] == 30
    assert said["failed_requests"] == 0
    assert said["exposed_devices"] == 7
    assert said["fleet_size"] == 20
    assert said["accuracy"] == {"1.0.0": None, "2.0.0": round(29 / 30, 4), "3.0.0": None}
    assert said["accuracy_over_time"] == {"before": 1.0, "during": 0.9, "after": 1.0}


@pytest.mark.parametrize(
    ("states", "samples"),
    [
        (("promoted", "rolled_back", "rolled_back"), ANSWERED),
        (("promoted", "promoted", "promoted"), ANSWERED),
        (("promoted", "promoted", "aborted"), ANSWERED),
        (GOOD, [*ANSWERED, Sample(321.0, "d", "", False, 0.0)]),
    ],
    ids=["good one not promoted", "bad one promoted", "bad one aborted", "a request failed"],
)
def test_anything_else_is_not_ok(states: tuple[str, str, str], samples: list[Sample]) -> None:
    assert not result(states, samples).ok


def test_score_without_answers_has_no_accuracy() -> None:
    assert score([]).accuracy is None
    failed = score([Sample(1.0, "d", "", False, 0.0)])
    assert (failed.requests, failed.failed, failed.accuracy) == (1, 1, None)
