"""The study of the gate: figures by hand, goals that can be missed, and a run that goes on where it was."""

import json

import pytest

from benchmarks.gate_study import __main__ as study
from benchmarks.gate_study.report import cells, goals, markdown, plot, terminal, to_json
from benchmarks.gate_study.worlds import OURS, WORLDS, one_rollout

RIVAL = "fixed 1.5x threshold"


def row(world: str, number: int, ours: list[float] | None, rival: list[float] | None) -> dict:
    return {"world": world, "number": number, "found": {OURS: ours, RIVAL: rival}}


def rows_of(world: str, ours: list, rival: list) -> list[dict]:
    return [row(world, n, *pair) for n, pair in enumerate(zip(ours, rival, strict=True))]


def test_figures_of_a_world_by_hand():
    found = cells(rows_of("x2", [[0, 4.5, 20], [1, 10, 100], None], [[0, 5, 20]] * 3))
    ours = next(one for one in found if one.rule == OURS)
    assert (ours.rollouts, ours.rolled_back, ours.in_first_ring) == (3, 2, 1)
    assert ours.minutes == pytest.approx((4.5 + 70) / 2)
    assert ours.exposed == pytest.approx((20 + 100 + 2000) / 3)
    assert ours.share_se == pytest.approx((2 / 3 * 1 / 3 / 3) ** 0.5)


@pytest.mark.parametrize(
    ("false_alarms", "met"), [(0, True), (2, True), (30, False)], ids=("none", "few", "many")
)
def test_false_rollbacks_may_be_a_hundredth_and_chance(false_alarms, met):
    ours = [[0, 5, 20]] * false_alarms + [None] * (100 - false_alarms)
    found = goals(cells(rows_of("same", ours, [None] * 100)))
    assert found[0].met is met
    assert all(goal.met is None for goal in found[1:])


@pytest.mark.parametrize(("rival_false", "met"), [(0, False), (50, True)])
def test_only_rules_without_false_alarms_are_rivals(rival_false, met):
    same = rows_of("same", [None] * 100, [[0, 5, 20]] * rival_false + [None] * (100 - rival_false))
    bad = rows_of("x2", [[1, 5, 100]] * 100, [[0, 5, 20]] * 100)
    exposed = [goal for goal in goals(cells(same + bad)) if "exposed: twice" in goal.what]
    assert [goal.met for goal in exposed] == [met]


def test_every_form_of_the_results_has_every_rule():
    rows = [*rows_of("same", [None] * 2, [[0, 5, 20], None])]
    rows += rows_of("x2", [[0, 4.5, 20]] * 2, [[0, 5, 20], None])
    found = cells(rows)
    texts = [markdown(found, "Here.", "x.svg"), terminal(found), plot(found, rows)]
    for text in texts:
        assert OURS.replace("'", "&#x27;") in text or OURS in text
        assert RIVAL in text
    assert texts[2].startswith("<svg ")
    assert len(json.loads(json.dumps(to_json(found)))["cells"]) == 4


def test_a_rollout_is_the_same_whenever_it_is_done_and_a_stopped_run_goes_on(
    tmp_path, monkeypatch, capsys
):
    out = tmp_path / "study.jsonl"
    once = one_rollout("total", 0)
    assert once["found"][OURS] == [0, 2.5, 20]
    out.write_text(json.dumps(once) + "\n" + '{"world": "total", "num')
    assert study.missing(study.read_rows(out), ["total"], 2) == [("total", 1)]
    monkeypatch.setattr(
        "sys.argv",
        ["x", "--rollouts", "2", "--jobs", "1", "--out", str(out), "--worlds", "total", "--json"],
    )
    study.main()
    said = json.loads(capsys.readouterr().out)
    ours = next(one for one in said["cells"] if one["rule"] == OURS)
    assert (ours["rollouts"], ours["share"]) == (2, 1.0)
    assert len(study.read_rows(out)) == 2
    assert json.loads(out.read_text().splitlines()[0]) == once == one_rollout("total", 0)


def test_each_world_says_what_is_right():
    assert {name for name, world in WORLDS.items() if not world.bad} == {
        "same",
        "incident",
        "broken",
    }
