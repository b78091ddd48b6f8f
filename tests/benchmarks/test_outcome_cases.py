"""The cases of ``benchmarks.rollout_outcomes``: what simulated devices are told, and what the real bundles do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.rollout_outcomes.cases import CASES, OBJECTIVE_MS, ORDINARY
from benchmarks.rollout_outcomes.cases import behaviours as tables
from benchmarks.rollout_outcomes.model import LABELS, Faults, drawn_input, write_project
from benchmarks.rollout_outcomes.report import markdown, terminal
from benchmarks.rollout_outcomes.run import Outcome, Setting, ended, guards_of
from simulator.scenario import behaviour_of, parse_scenario

ASKED = 1000


def test_each_second_version_differs_in_its_fault_alone():
    models = parse_scenario(tables(CASES)).models
    ordinary = behaviour_of(models, ("good", "1.0.0", "edge"))
    assert (ordinary.error_rate, ordinary.wrong_rate) == (ORDINARY.error, ORDINARY.wrong)
    about = {"model": "*", "version": "*", "provider": "*"}
    changed = {}
    for case in CASES:
        assert behaviour_of(models, (case.name, "1.0.0", "edge")) == ordinary
        second = replace(behaviour_of(models, (case.name, "2.0.0", "edge"), "cuda"), **about)
        changed[case.name] = [
            name
            for name in second.__dataclass_fields__
            if getattr(second, name) != getattr(replace(ordinary, **about), name)
        ]
    assert changed == {
        "good": [],
        "errors": ["error_rate"],
        "slow": ["over_objective_rate"],
        "drift": ["outputs"],
        "feedback": ["wrong_rate"],
        "dead": ["error_rate"],
        "crash": ["crash_after_s"],
        "silent": ["silent_after_commit"],
    }
    assert behaviour_of(models, ("crash", "2.0.0", "edge"), "cpu") == ordinary


def shares(folder: Path, faults: Faults) -> tuple[float, float, float]:
    """Of many requests to the real model: those that failed, were answered wrongly, were answered "a"."""
    project = write_project(folder, ("m", "1.0.0"), faults, OBJECTIVE_MS, 1.0)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the failures are meant
    session = onnxruntime.InferenceSession(project / "model.onnx", options)
    draw, failed, wrong, first = np.random.default_rng(1), 0, 0, 0
    for _ in range(ASKED):
        x, right = drawn_input(draw)
        try:
            (scores,) = session.run(["y"], {"x": x})
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument:
            failed += 1
            continue
        said = LABELS[int(scores[0].argmax())]
        wrong += said != right
        first += said == LABELS[0]
    answered = max(ASKED - failed, 1)
    return failed / ASKED, wrong / answered, first / answered


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (ORDINARY, (0.02, 0.05, 0.25)),
        (replace(ORDINARY, error=0.04), (0.04, 0.05, 0.25)),
        (replace(ORDINARY, wrong=0.15), (0.02, 0.15, 0.25)),
        (replace(ORDINARY, drift=0.2), (0.02, 0.2, 0.4)),
        (replace(ORDINARY, error=1.0), (1.0, 0.0, 0.0)),
    ],
)
def test_the_real_model_has_its_faults_in_the_shares_asked_for(tmp_path, faults, expected):
    assert shares(tmp_path, faults) == pytest.approx(expected, abs=0.04)


GOOD, ERRORS = CASES[:2]
RIGHT = Outcome(
    case=ERRORS,
    ended="rolled back",
    reason="the canary devices have more failed requests (4 %; 2 % elsewhere); and so on",
    guards=("comparison",),
    minutes=2.5,
    exposed=103,
    real_exposed=1,
    audit_equal=True,
    looks=1,
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ended": "promoted"},
        {"reason": "the canary devices have more drift of the outputs"},
        {"guards": ("outcomes",)},
        {"audit_equal": False},
    ],
)
def test_an_outcome_is_right_only_with_its_end_its_guard_its_reason_and_its_audit(wrong):
    assert RIGHT.is_right
    assert not replace(RIGHT, **wrong).is_right


def test_a_rollout_that_went_on_without_a_stratum_has_its_own_end():
    assert ended("promoted", ["edge/cuda"]) == "stratum stopped"
    assert ended("promoted", []) == "promoted"
    assert ended("rolled_back", ["edge/cuda"]) == "rolled back"


def test_the_guards_that_gave_it_are_those_that_failed_or_blamed_a_stratum():
    findings = [
        {"guard": "coverage", "verdict": "hold", "evidence": {}},
        {"guard": "outcomes", "verdict": "fail", "evidence": {}},
        {"guard": "comparison", "verdict": "pass", "evidence": {"stop_strata": ["edge/cuda"]}},
    ]
    assert guards_of({"evidence": {"findings": findings}}) == ["outcomes", "comparison"]
    assert guards_of({"evidence": {}}) == []


def test_the_section_says_what_ended_otherwise_than_it_must():
    wrong = replace(RIGHT, case=GOOD, ended="rolled back")
    text = markdown([RIGHT, wrong], Setting())
    assert "| 2x errors (2 % to 4 %) | rolled back | comparison | 2.5 | 103 | equal |" in text
    assert "| none | rolled back (wrong) |" in text
    assert "*the canary devices have more failed requests (4 %; 2 % elsewhere)*" in text
    assert terminal([wrong]).startswith("WRONG good")
