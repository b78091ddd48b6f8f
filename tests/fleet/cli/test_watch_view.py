"""The page of `fleet rollout watch` at two widths, from what the API says."""

import io
import json
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fleet.cli.watch_view import comparison_view, follower, line_of, watch_view
from fleet.rollout.controller import decide
from fleet.rollout.report import describe
from fleet.rollout.states import State
from tests.fleet.rollout.rollout_builders import good, refused, rollout, snapshot, waiting


def arm(devices: int, value: float | None) -> dict[str, Any]:
    return {"devices": devices, "bad": 1, "total": 2, "value": value}


def metric(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "words": "x",
        "kind": "rate",
        "cohort": arm(18, 0.021),
        "control": arm(180, 0.0105),
        "z": 2.0,
        "p_value": 0.0123,
        "effect": 2.0,
        "low": 1.4,
        "high": 3.21,
        "smallest": 1.9,
        "tolerance": 1.25,
        "holds": True,
        **changes,
    }


@pytest.fixture
def found() -> dict[str, Any]:
    """A stage half way, after its third look."""
    seen = snapshot([good(0), *(waiting(number) for number in range(1, 10))], now_s=1_050.0)
    described = describe(seen, decide(seen))
    described["comparison"] = {
        "number": 3,
        "look": 3,
        "looks": 9,
        "next_look_s": 1_122.0,
        "canaries": 20,
        "devices": 200,
        "reported": 18,
        "p_value": 0.01,
        "reason": "",
        "metrics": [
            metric("error_rate"),
            metric("output_violation_rate", effect=None, smallest=None, cohort=arm(0, None)),
            metric("rss", kind="level", cohort=arm(18, 123456789.0), control=arm(9, 1.5)),
        ],
    }
    described["waits"].append(
        {"guard": "comparison", "words": "at this size " + "x y " * 30, "until_s": 1_122.0}
    )
    return described


def page(found: dict[str, Any], width: int) -> list[str]:
    return shown_at(watch_view(found, width), width)


def shown_at(view: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_has_everything_and_is_never_broken(found: dict[str, Any], width: int) -> None:
    shown = page(found, width)
    text = "\n".join(shown)
    assert max(len(line.rstrip()) for line in shown) <= width
    assert "…" not in text  # nothing is cut off
    assert "r2 running  bundles/cam/digits-2  started 50s ago" in text
    assert "▶ 10 % 1m, 10s left  · 50 % 1m  · 100 % 1m" in text
    assert "look 3 of 9, 18 of 20 canary devices in it; the next in 1m 12s" in text
    assert "error *" in text
    for cell in ("2.1 %", "1.05 %", "2x (1.4–3.21)", "0.012", "1.9x", "1.25x", "123.5M"):
        assert cell in text
    assert "• 7 more canary devices committed and reported (1 of 10 so far)" in text
    assert "• the bake of stage 1 of 3 (10 %) over (in 10s)" in text
    last = [line for line in shown if line.startswith("   x y") or line.startswith("   y x")]
    assert last, "a long clause goes on below itself"
    assert ("18 / 180" in text) is (width >= 100)


def test_many_stages_are_broken_between_stages_alone(found: dict[str, Any]) -> None:
    found["stage_list"] *= 4
    found["held_back"] = {"percent_bp": 500, "state": "held"}
    shown = page(found, 80)
    assert [line.rstrip() for line in shown[1:4]] == [
        "stages  ▶ 10 % 1m, 10s left  · 50 % 1m  · 100 % 1m  ▶ 10 % 1m, 10s left",
        "        · 50 % 1m  · 100 % 1m  ▶ 10 % 1m, 10s left  · 50 % 1m  · 100 % 1m",
        "        ▶ 10 % 1m, 10s left  · 50 % 1m  · 100 % 1m  · the rest, 5 %",
    ]


def test_before_a_look_the_rates_are_shown_as_they_are(found: dict[str, Any]) -> None:
    found["comparison"] = None
    text = "\n".join(page(found, 80))
    assert "over_latency" in text
    assert "look" not in text


def test_a_status_has_the_comparison_if_there_is_one(found: dict[str, Any]) -> None:
    text = "\n".join(shown_at(comparison_view(found, 80), 80))
    assert "2x (1.4–3.21)" in text
    assert "look 3 of 9" in text
    assert shown_at(comparison_view({**found, "comparison": None}, 80), 80) == []


def test_failed_devices_and_the_end() -> None:
    over = rollout(state=State.ROLLED_BACK, reason="rolled back: it")
    seen = snapshot([refused(number) for number in range(10)], rollout=over)
    described = describe(seen, decide(seen))
    text = "\n".join(page(described, 80))
    assert "Devices that failed or went back" in text
    assert "… and 5 more" in text
    assert "rolled back: it" in text
    assert "stages  ✗ 10 % 1m  · 50 % 1m" in text
    assert "goes on with" not in text
    assert len(line_of(described)["failed_devices"]) == 10


def test_a_program_gets_a_line_a_change(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with follower(as_json=True) as show:
        show(found)
        show({**found, "now_s": 1_051.0})
        show({**found, "comparison": {**found["comparison"], "number": 4}})
        show({**found, "reason": "holding: something else"})
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["comparison"]["number"] for line in written] == [3, 4, 3]
    assert (written[0]["at"], written[0]["stage"], written[0]["stages"]) == (
        "1970-01-01T00:17:30Z", 1, 3,
    )  # fmt: skip
    assert "failed_devices" not in written[0]
