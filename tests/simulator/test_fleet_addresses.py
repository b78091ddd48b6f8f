"""Where a world finds its fleet manager."""

import json

import pytest

from agent.errors import ConfigError
from simulator.addresses import Endpoint, find_fleet
from simulator.errors import ScenarioError
from simulator.scenario import FleetAddress

RUN = {
    "fleet": "lab",
    "http": "http://127.0.0.1:1",
    "grpc": "127.0.0.1:2",
    "mqtt": "127.0.0.1:3",
    "pid": 7,
}


@pytest.fixture
def home(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "root.json").write_text("root")
    return tmp_path


def test_a_home_says_everything(home):
    found = find_fleet(FleetAddress(), home=home)
    assert (found.name, str(found.grpc), str(found.mqtt)) == ("lab", "127.0.0.1:2", "127.0.0.1:3")
    assert found.root == b"root"
    assert found == find_fleet(FleetAddress(), run_file=home / "run.json")


def test_the_environment_names_the_home(home, monkeypatch):
    monkeypatch.setenv("MUSTER_HOME", str(home))
    assert find_fleet(FleetAddress()).name == "lab"


def test_the_scenario_wins(home):
    said = FleetAddress(name="mine", mqtt="mqtt://[::1]:9")
    found = find_fleet(said, home=home)
    assert (found.name, found.mqtt) == ("mine", Endpoint("::1", 9))
    assert str(found.mqtt) == "[::1]:9"


def test_a_complete_scenario_needs_no_run_file(home):
    said = FleetAddress(grpc="localhost:2", mqtt="localhost:3", root=str(home / "root.json"))
    assert find_fleet(said).name == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mqtt": ""}, "no mqtt address"),
        ({"grpc": "nonsense"}, "not of the form host:port"),
        ({"grpc": "127.0.0.1:0"}, "not of the form host:port"),
    ],
)
def test_what_is_missing_is_said(home, change, said):
    (home / "run.json").write_text(json.dumps(RUN | change))
    with pytest.raises(ScenarioError, match=said):
        find_fleet(FleetAddress(), home=home)


def test_nothing_leaves_this_machine(home):
    with pytest.raises(ConfigError, match="loopback"):
        find_fleet(FleetAddress(grpc="10.0.0.1:8471"), home=home)


def test_a_fleet_manager_that_does_not_run(tmp_path):
    with pytest.raises(ScenarioError, match="is `fleet serve` running"):
        find_fleet(FleetAddress(), home=tmp_path)


@pytest.mark.parametrize("content", ["[1]", "{", "\x00"])
def test_a_damaged_run_file(home, content):
    (home / "run.json").write_text(content)
    with pytest.raises(ScenarioError, match=r"run\.json is not"):
        find_fleet(FleetAddress(), home=home)


def test_only_one_way_to_say_it(home):
    with pytest.raises(ScenarioError, match="one of them"):
        find_fleet(FleetAddress(), home=home, run_file=home / "run.json")
