"""``fleet-sim`` as a user runs it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from simulator.cli import app
from tests.support.daemon import Daemon, run, wait_until

SIM = (sys.executable, "-m", "simulator.entry")


def test_a_run_ends_by_itself_with_its_figures(host):
    done = run(
        [*SIM, "run", "steady", "--home", str(host.home), "--devices", "3", "--duration", "8",
         "--seed", "9", "--json"]
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert (said["devices"], said["seed"], said["connected_peak"]) == (3, 9, 3)
    assert said["reports_made"] >= said["reports_acknowledged"] >= 3
    assert said["failed_devices"] == 0


def test_sigterm_is_a_clean_end_with_the_table(host, tmp_path):
    scenario = tmp_path / "mine.toml"
    scenario.write_text("[devices]\ncount = 2\nprefix = 'term-'\nramp_s = 0\n")
    world = Daemon(tmp_path / "sim.log")
    world.start([*SIM, "run", str(scenario), "--run-json", str(host.home / "run.json")])
    try:
        wait_until(
            lambda: (
                sum(
                    device["online"]
                    for device in host.get("/v1/devices")["devices"]
                    if device["id"].startswith("term-")
                )
                == 2
            ),
            "both devices are online",
        )
        assert world.terminate() == 0, world.tail()
    finally:
        world.kill()
    assert "2, at most 2 connected at once" in world.tail()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "nothing-like-it"], 2, "the packaged scenarios are canary-errors"),
        (["run", "steady", "--devices", "0"], 2, "--devices = 0"),
        (["run", "steady", "--home", "/nonexistent"], 2, "is `fleet serve` running?"),
        (["run", "steady", "--run-json", "x", "--home", "y"], 2, "give one of them"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(arguments, code, said):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code
    assert said in " ".join(done.stderr.split())
    assert isinstance(done.exception, SystemExit)
    machine = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(machine.stdout)["exit_code"] == code


def test_scenarios_are_listed_and_printed(tmp_path):
    listed = json.loads(run([*SIM, "scenarios", "--json"]).stdout)
    assert listed["silent"].startswith("Half of the devices")
    printed = run([*SIM, "scenarios", "silent"]).stdout
    copy = tmp_path / "copy.toml"
    copy.write_text(printed)
    from simulator.scenario import load_scenario

    assert load_scenario(str(copy)) == load_scenario("silent")


def test_a_missing_extra_is_named(tmp_path):
    code = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'mqtt5': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from simulator.entry import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs the simulator extra (mqtt5 is not installed)" in done.stderr
