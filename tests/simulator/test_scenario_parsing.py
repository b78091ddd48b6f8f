"""Scenario files: strict, with messages that help."""

import pytest

from simulator.errors import ScenarioError
from simulator.scenario import (
    ModelBehaviour,
    behaviour_of,
    described,
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
    assert behaviour_of(models, ("vad", "1.4.0", "edge")).error_rate == 0.1
    assert behaviour_of(models, ("vad", "2.0.0", "edge")).error_rate == 0.2
    assert behaviour_of(models, ("digits", "2.0.0", "edge")) == ModelBehaviour()


def test_a_behaviour_may_be_that_of_one_provider_alone():
    models = parse_scenario("[[model]]\nprovider = 'cuda'\nerror_rate = 0.1").models
    assert behaviour_of(models, ("vad", "1.0.0", "edge"), "cuda").error_rate == 0.1
    assert behaviour_of(models, ("vad", "1.0.0", "edge"), "cpu") == ModelBehaviour()


def test_the_shares_of_labels_add_up():
    (model,) = parse_scenario("[[model]]\noutputs = { a = 0.25, b = 0.75 }").models
    assert model.outputs == {"a": 0.25, "b": 0.75}
    with pytest.raises(ScenarioError, match=r"outputs adds up to 0\.5"):
        parse_scenario("[[model]]\noutputs = { a = 0.5 }")


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
        "virtual-same", "virtual-worse", "virtual-one-class",
    }  # fmt: skip
    for name in packaged_scenarios():
        scenario = load_scenario(name)
        assert scenario.is_virtual == name.startswith("virtual-")
        assert scenario.devices.count == (2000 if scenario.is_virtual else 50)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[population]\nerror_rate = 0.1", r'\[population\] is for \[run\] time = "virtual"'),
        ("[run]\nrollout = 'x'", r'rollout is for time = "virtual"'),
        ("[run]\ntime = 'virtual'\n[[model]]", r'\[model\] is for \[run\] time = "real"'),
        ("[run]\ntime = 'soon'", "not one of real, virtual"),
        ("[run]\ntime = 'virtual'\n[candidate]\nerror_factr = 2", "did you mean 'error_factor'"),
        ("[run]\ntime = 'virtual'\n[population]\nkinds = 3", "not a table of shares"),
        ("[run]\ntime = 'virtual'\n[population.kinds]\na = 0.5", "adds up to 0.5"),
        ("[run]\ntime = 'virtual'\n[population.kinds]\na = 0", "not a share above 0"),
    ],
)
def test_what_only_one_kind_of_time_knows_is_refused_in_the_other(text, said):
    with pytest.raises(ScenarioError, match=said):
        parse_scenario(text)


def test_a_virtual_scenario_has_a_population_and_a_candidate():
    scenario = parse_scenario(
        "[run]\ntime = 'virtual'\n[population]\nkinds = { 'a/x' = 0.25, 'a/y' = 0.75 }\n"
        "[candidate]\nerror_factor = 2\n[incident]\nduration_s = 60"
    )
    assert scenario.is_virtual
    assert scenario.population.kinds == {"a/x": 0.25, "a/y": 0.75}
    assert (scenario.candidate.error_factor, scenario.incident.duration_s) == (2.0, 60.0)


def test_every_key_is_described_with_its_default():
    said = described()
    assert ("seed", "`1`", "everything drawn by chance follows from it and the device id") in said[
        "[devices]"
    ]
    assert ("kinds", '`{ "edge/cpu" = 1.0 }`') in [row[:2] for row in said["[population]"]]
    time = next(row for row in said["[run]"] if row[0] == "time")
    assert time[2].endswith("one of real, virtual")


def test_a_scenario_that_is_not_there(tmp_path):
    with pytest.raises(ScenarioError, match="canary-errors"):
        load_scenario(str(tmp_path / "none.toml"))


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[devices]\nseed = 'x'\n")
    with pytest.raises(ScenarioError, match=r"mine\.toml: \[devices\] seed"):
        load_scenario(str(path))
