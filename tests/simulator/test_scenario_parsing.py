"""Scenario files: strict, with messages that help."""

import pytest

from simulator.errors import ScenarioError
from simulator.scenario import (
    ModelBehaviour,
    behaviour_of,
    load_scenario,
    packaged_scenarios,
    parse_scenario,
)


def test_an_empty_scenario_has_every_default():
    scenario = parse_scenario("")
    assert scenario.devices.count == 10
    assert scenario.devices.ids()[0] == "sim-0001"
    assert scenario.run.duration_s == 0
    assert scenario.models == ()


def test_everything_can_be_said():
    scenario = parse_scenario(
        """
        [fleet]
        name = "north"
        mqtt = "127.0.0.1:8472"
        [devices]
        count = 3
        prefix = "cam-"
        class = "camera"
        labels = { site = "a", ring = ["early", "late"] }
        seed = 7
        [network]
        piece_bytes_per_s = 1000
        [[model]]
        model = "vad"
        trial = "golden"
        trial_rate = 0.5
        [[model]]
        silent_after_commit = true
        """
    )
    assert scenario.devices.device_class == "camera"
    assert scenario.devices.labels == {"site": ("a",), "ring": ("early", "late")}
    assert scenario.devices.ids() == ("cam-0001", "cam-0002", "cam-0003")
    assert scenario.models[0].trial == "golden"
    assert scenario.models[1].silent_after_commit


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[devices]\ncuont = 3", "unknown key 'cuont': did you mean 'count'?"),
        ("[device]\ncount = 3", "unknown key 'device': did you mean 'devices'?"),
        ("[run]\nzebra = 1", "known are time, duration_s"),
        ("[devices]\ncount = 0", "not between 1 and"),
        ("[devices]\ncount = 2.5", "not a whole number"),
        ("[devices]\ncount = true", "not a number"),
        ("[traffic]\njitter = nan", "not between 0 and 1"),
        ("[[model]]\nerror_rate = 2", "[[model]] number 1 error_rate = 2 is not between 0 and 1"),
        ("[[model]]\ntrial = 'boom'", "not one of ok, crash, golden, memory"),
        ("[[model]]\nsilent_after_commit = 1", "not true or false"),
        ("[model]\nmodel = '*'", "write [[model]]"),
        ("[devices]\nprefix = 'Cam_'", "prefix = 'Cam_'"),
        ("[devices]\nlabels = { site = 3 }", "labels.site = 3"),
        ("[devices]\nclass = 3", "class = 3 is not a text"),
        ("devices = 3", "[devices] is not a table"),
        ("[devices", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said(text, said):
    with pytest.raises(ScenarioError) as refused:
        parse_scenario(text)
    assert said in str(refused.value)


def test_the_first_behaviour_that_matches_counts():
    models = parse_scenario(
        """
        [[model]]
        version = "1.*"
        error_rate = 0.1
        [[model]]
        model = "vad"
        error_rate = 0.2
        """
    ).models
    assert behaviour_of(models, "vad", "1.4.0", "edge").error_rate == 0.1
    assert behaviour_of(models, "vad", "2.0.0", "edge").error_rate == 0.2
    assert behaviour_of(models, "digits", "2.0.0", "edge") == ModelBehaviour()


def test_the_command_line_may_change_it_within_the_same_limits():
    scenario = parse_scenario("").changed(count=4, duration_s=2.5, seed=9)
    assert (scenario.devices.count, scenario.run.duration_s, scenario.devices.seed) == (4, 2.5, 9)
    with pytest.raises(ScenarioError, match="--devices"):
        scenario.changed(count=0)
    with pytest.raises(ScenarioError, match="--duration"):
        scenario.changed(duration_s=-1)


def test_packaged_scenarios_parse_and_are_found_by_name():
    assert set(packaged_scenarios()) == {
        "steady", "canary-errors", "crash-on-load", "silent", "slow-link",
    }  # fmt: skip
    for name in packaged_scenarios():
        assert load_scenario(name).devices.count == 50


def test_a_scenario_that_is_not_there(tmp_path):
    with pytest.raises(ScenarioError, match="canary-errors"):
        load_scenario(str(tmp_path / "none.toml"))


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[devices]\nseed = 'x'\n")
    with pytest.raises(ScenarioError, match=r"mine\.toml: \[devices\] seed"):
        load_scenario(str(path))
