"""Studies: figures of outcomes by hand, the page, and the two commands as they are typed."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from simulator.cli import app
from simulator.virtual.page import study_page
from simulator.virtual.run import Decision, VirtualOutcome
from simulator.virtual.study import Share, run_seeds, summed_up
from tests.simulator.virtual.virtual_scenarios import TOML, small

BAD = VirtualOutcome(
    devices=100,
    seed=1,
    state="rolled_back",
    stage=0,
    after_s=300.0,
    reason="rolled back: <b>errors</b> & more",
    exposed=10,
    serving=0,
    refused=0,
    reverted=0,
    reports=1000,
    requests=5000,
    failures=50,
    virtual_s=600.0,
    cpu_s=0.5,
    decisions=(Decision(0.0, "start", 0, "started"),),
)
OUTCOMES = [
    BAD,
    replace(BAD, seed=2, stage=1, after_s=900.0, exposed=30),
    replace(BAD, seed=3, state="promoted", stage=2, exposed=100),
    replace(BAD, seed=4, state="holding", exposed=20),
]


def test_figures_by_hand():
    study = summed_up(small("error_factor = 2.0"), "mine", OUTCOMES)
    assert (study.is_worse, study.verdict) == (True, "power")
    assert study.rolled_back == Share(2, 4)
    assert (study.promoted.count, study.holding.count) == (1, 1)
    assert study.rolled_back.interval == pytest.approx((0.150, 0.850), abs=0.001)
    assert study.minutes == (5.0, 15.0)
    assert study.median_minutes == 10.0
    assert study.exposed == 40.0
    assert study.exposed_error == pytest.approx((((30**2) + 10**2 + 60**2 + 20**2) / 3) ** 0.5 / 2)
    assert study.in_stage == ((0, 1), (1, 1))
    assert json.loads(json.dumps(study.to_json()))["rolled_back"]["share"] == 0.5


@pytest.mark.parametrize(
    ("count", "of", "interval"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (15, 50, (0.1910, 0.4375)), (0, 0, (0, 1))],
)
def test_intervals_of_shares_are_wilsons(count, of, interval):
    assert Share(count, of).interval == pytest.approx(interval, abs=0.0001)


def test_without_an_effect_every_rollback_is_false():
    study = summed_up(small(), "mine", OUTCOMES[2:])
    assert study.verdict == "false rollbacks"
    assert (study.median_minutes, study.rolled_back.value) == (None, 0.0)
    assert ("time to a rollback", "–") in study.rows()
    with pytest.raises(ValueError, match="one outcome"):
        summed_up(small(), "mine", [])


@pytest.mark.parametrize(
    "candidate",
    ["slow_floor = 0.1", "wrong_factor = 1.5", "refused_rate = 0.1", "silent_rate = 0.1"],
)
def test_every_way_to_be_worse_counts(candidate):
    assert small(candidate).candidate.is_worse


def test_the_page_stands_alone_and_escapes_what_it_quotes():
    study = summed_up(small(), "a <scenario>", OUTCOMES)
    page = study_page(study, OUTCOMES, "x = '<script>'")
    assert "<script>" not in page
    assert "&lt;b&gt;errors&lt;/b&gt; &amp; more" in page
    assert not re.search(r"(src|href)=", page)
    drawing = ElementTree.fromstring(re.search(r"<svg.*?</svg>", page, re.DOTALL)[0])
    said = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"rolled back", "promoted", "left holding"} <= set(said)
    assert page.count("<tr><td class='number'>") == len(OUTCOMES)


def test_seeds_are_worlds_of_their_own():
    one, two = run_seeds(small("error_floor = 1.0"), [5, 6], jobs=1)
    assert (one.seed, two.seed) == (5, 6)
    assert {one.state, two.state} == {"rolled_back"}
    assert one.requests != two.requests


def test_the_commands(tmp_path):
    path = tmp_path / "total.toml"
    path.write_text(TOML.format(candidate="error_floor = 1.0", population="", run=""))
    ran = CliRunner().invoke(app, ["run", str(path), "--seed", "7", "--json"])
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert (said["state"], said["seed"]) == ("rolled_back", 7)
    assert said["decisions"][-1]["action"] == "rollback"

    page = tmp_path / "study.html"
    arguments = ["study", str(path), "--seeds", "1", "--seed", "7", "--jobs", "1"]
    studied = CliRunner().invoke(app, [*arguments, "--html", str(page)])
    assert studied.exit_code == 0, studied.output
    assert "power" in studied.stdout
    assert "error_floor = 1.0" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study", "steady"], 'time = "virtual"'),
        (["run", "virtual-worse", "--home", "/x"], "leave --home"),
        (["study", "virtual-worse", "--devices", "0"], "--devices = 0"),
    ],
)
def test_what_cannot_be_studied_is_said(arguments, said):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
