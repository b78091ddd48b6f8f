"""What bookkeeping adds to an answer: measured on a real model, and the section that is made of it."""

import numpy as np

from benchmarks.bookkeeping import Figures, markdown, measure_bookkeeping
from benchmarks.serving_models import Workload
from fleet.artifacts.build import build_bundle
from tests.support.bundles import tiny_project


def test_counting_an_answer_costs_something(tmp_path):
    built, other = (
        build_bundle(tiny_project(tmp_path, version), tmp_path / f"built-{version}", now_s=1)
        for version in ("1.0.0", "1.0.1")
    )
    x = np.array([[0.0, 0.1, 0.2, 0.3]], np.float32)
    workload = Workload(
        "tiny", "tiny", "a line", tmp_path, {"x": x}, {}, built.path, built.manifest_sha256
    )
    found = measure_bookkeeping(workload, other, rounds=9)
    assert set(found) == {"telemetry", "ids for feedback", "copies for a shadow"}
    assert 0 < found["telemetry"] < 1000


def test_the_section_names_what_takes_more_than_it_may():
    figures = [
        Figures("tiny: digits", 100.0, {"telemetry": 3.0, "ids for feedback": 1.0}),
        Figures("small: vad", 300.0, {"telemetry": 3.0, "ids for feedback": 1.0}),
    ]
    text = markdown(figures, "a machine", 9)
    assert (
        "| tiny: digits | 100 | 3.0 us (3.0 %) | 1.0 us (1.0 %) | **missed** by telemetry |" in text
    )
    assert "| small: vad | 300 | 3.0 us (1.0 %) | 1.0 us (0.3 %) | met |" in text
