"""The demonstration, shorter than a person would want it: the same story, fewer devices, shorter bakes."""

from pathlib import Path

import pytest

from fleet.demo.settings import DemoOptions
from fleet.demo.story import Narrator, Story


@pytest.mark.timeout(900)
def test_the_demo_promotes_the_good_one_and_rolls_back_the_broken_one(tmp_path: Path) -> None:
    told: list[str] = []
    options = DemoOptions(devices=40, agents=2, bake_s=1.5, steady_s=1.0, folder=tmp_path / "demo")

    result = Story(options, Narrator(told.append, told.append, lambda _: None)).tell()

    said = result.to_json()
    assert said["ok"], (said, told)
    assert said["fleet_size"] == 42
    assert 1 <= said["exposed_devices"] < 21
    assert said["requests"] > 100
    assert said["accuracy"]["2.0.0"] > said["accuracy"]["1.0.0"]
    # Forty devices that died at once would leave a demo of two that ends the same.
    assert said["rollouts"][1]["exposed_devices"] > 21
    # Whichever comes first: what the devices say when they go back, or the fleet's own count of their answers.
    reason = said["rollouts"][2]["reason"]
    assert "probation_output_violations" in reason or "outside the contract" in reason, reason
