"""Faulty bundles over the wire, as ``benchmarks.rollout_outcomes`` has them: few devices, absolute limits alone."""

from pathlib import Path

import pytest

from benchmarks.rollout_outcomes.cases import CASES
from benchmarks.rollout_outcomes.run import Setting, run_cases

SHORT = Setting(
    devices=30,
    providers="cpu,cuda",
    agents=1,
    stages=((34.0, 1.0), (100.0, 1.0)),
    past_s=0.0,
    window_s=1.0,
    cohort_window_s=1.0,
    requests_per_s=20.0,
    rate=5.0,
    ramp_s=0.5,
    probation_s=2.0,
    silence_s=300.0,
    deadline_s=400.0,
    guards={"statistics": "off", "min_requests": 20, "min_installs": 2},
)


@pytest.mark.timeout(900)
def test_a_good_bundle_is_promoted_and_broken_ones_go_back_for_the_right_reason(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    cases = [case for case in CASES if case.name in {"good", "dead", "crash"}]

    outcomes = {one.case.name: one for one in run_cases(cases, SHORT, tmp_path, told.append)}

    assert set(outcomes) == {"good", "dead", "crash"}
    for one in outcomes.values():
        assert one.is_right, (one.to_json(), told)
    # A promotion waits for four fifths; who of the others is done when it is looked at is chance.
    assert outcomes["good"].exposed >= 0.8 * (SHORT.devices + SHORT.agents)
    assert outcomes["dead"].exposed >= 1
    assert outcomes["crash"].exposed >= 1
