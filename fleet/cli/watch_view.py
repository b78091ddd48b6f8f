"""``fleet rollout watch``: a page that stays in place on a terminal, a line of JSON a change elsewhere.

Rules kept here: the page fits 80 columns and says less there, never something broken; what it shows
is what the API says, so a program sees the same numbers; a line is written when state, stage, reason
or the newest look has changed.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fleet.cli.output import console
from fleet.cli.rollout_view import STATE_STYLE, ago, failed_table, seconds, share, when

__all__ = ["comparison_view", "follower", "line_of", "watch_view"]

WIDE: Final = 100  # columns from which on metrics are told with their devices
_DEVICES: Final = ("targeted", "reachable", "installed", "reported", "failed")
_PLAIN: Final = ("error_rate", "over_latency_rate", "output_violation_rate")
_COUNTED: Final = ("number", "look", "looks", "next_look_s", "canaries", "devices", "reported")
NOTHING: Final = "–"
_STAGES: Final = "stages  "


@contextmanager
def follower(*, as_json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Something that shows a rollout again and again."""
    if as_json or not console.is_terminal:
        yield _line_writer()
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda found: live.update(watch_view(found, console.width), refresh=True)


def _line_writer() -> Callable[[dict[str, Any]], None]:
    told: list[tuple[Any, ...]] = []

    def show(found: dict[str, Any]) -> None:
        look = (found["comparison"] or {}).get("number")
        now = (found["state"], found["stage"], found["reason"], look)
        if told != [now]:
            told[:] = [now]
            sys.stdout.write(json.dumps(line_of(found), separators=(",", ":")) + "\n")
            sys.stdout.flush()

    return show


def line_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """One change for programs: what the page shows, without what stays the same."""
    compared = found["comparison"]
    line = {
        "at": when(found["now_s"]).replace(" ", "T") + "Z",
        "id": found["id"],
        "state": found["state"],
        "final": found["final"],
        "stage": found["stage"] + 1,
        "stages": found["stages"],
        "percent": found["percent_bp"] / 100,
        "verdict": found["verdict"],
        "reason": found["reason"],
        "waits": found["waits"],
        "arms": found["arms"],
        "comparison": compared and {name: compared[name] for name in (*_COUNTED, "metrics")},
        "stopped": found["stopped"],
    }
    if found["final"]:
        line["failed_devices"] = found["failed_devices"]
    return line


# --- the page -------------------------------------------------------------------------------------


def watch_view(found: Mapping[str, Any], width: int) -> RenderableType:
    """The page for a terminal of ``width`` columns."""
    state = found["state"]
    head = Text.assemble(
        (f"{found['id']} ", "bold"),
        (state.replace("_", " "), STATE_STYLE.get(state, "")),
        f"  {found['bundle']}  started {ago(found['created_s'], found['now_s'])}",
    )
    parts: list[RenderableType] = [head, _stages(found, width), Text(), _devices(found), Text()]
    parts += [_metrics(found, width), *_looks(found), *_outlook(found)]
    if found["failed_devices"]:
        is_back = state == "rolled_back"
        title = "Devices that failed or went back" if is_back else "Failed devices"
        parts += [Text(), failed_table(found["failed_devices"], title, most=5)]
    return Group(*parts)


def comparison_view(found: Mapping[str, Any], width: int) -> RenderableType:
    """What the newest look found, by metric; nothing where nothing was compared."""
    if not found["comparison"] or not found["comparison"]["metrics"]:
        return Group()
    return Group(Text(), _metrics(found, width), *_looks(found))


_MARKS: Final = {
    "done": ("✓", "green"),
    "current": ("▶", "bold cyan"),
    "next": ("·", "dim"),
    "rolled_back": ("✗", "red"),
    "aborted": ("✗", "yellow"),
    "superseded": ("✗", "yellow"),
}


def _stages(found: Mapping[str, Any], width: int) -> Text:
    """All stages in a line or two, broken between stages alone."""
    pieces = [_stage(stage, found) for stage in found["stage_list"]]
    held = found["held_back"]
    if held["state"] != "none":
        mark, style = _MARKS["done" if held["state"] == "done" else "next"]
        pieces.append((f"{mark} the rest, {held['percent_bp'] / 100:g} %", style))
    flow = Text(_STAGES)
    used = len(_STAGES)
    for text, style in pieces:
        if used > len(_STAGES) and used + len(text) > width:
            flow.append("\n" + " " * len(_STAGES))
            used = len(_STAGES)
        flow.append(text, style=style)
        flow.append("  ")
        used += len(text) + 2
    flow.rstrip()
    if found["stopped"]:
        flow.append(f"\nstopped {', '.join(found['stopped'])}", style="red")
    return flow


def _stage(stage: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, str]:
    """``▶ 20 % 1h, 58m 20s left`` and its style."""
    mark, style = _MARKS.get(stage["state"], ("‖", "yellow"))
    text = f"{mark} {stage['words']} {seconds(stage['bake_s'])}"
    if stage["state"] == "current":
        left_s = found["stage_started_s"] + stage["bake_s"] - found["now_s"]
        text += f", {seconds(int(left_s))} left" if left_s >= 1 else ", baked"
    elif stage["state"] in {"paused", "waiting"}:
        text += f", {stage['state']}"
    if stage["state"] == "next" and not stage["approved"]:
        text += ", needs approval"
    return text, style


def _devices(found: Mapping[str, Any]) -> Table:
    table = _table("devices", *(name for name in _DEVICES), "requests")
    for name in ("canary", "control"):
        arm = found["arms"][name]
        table.add_row(name, *(str(arm.get(count, NOTHING)) for count in (*_DEVICES, "requests")))
    return table


def _metrics(found: Mapping[str, Any], width: int) -> Table:
    compared = found["comparison"]
    if not compared or not compared["metrics"]:
        return _plain(found)
    is_wide = width >= WIDE
    counts = ("devices",) if is_wide else ()
    table = _table("metric", *counts, "canary", "control", "ratio, 90 %", "p", "sees", "asked")
    for metric in compared["metrics"]:
        arms = (metric["cohort"], metric["control"])
        devices = (f"{arms[0]['devices']} / {arms[1]['devices']}",) if is_wide else ()
        table.add_row(
            metric["name"].removesuffix("_rate") + (" *" if metric["holds"] else ""),
            *devices,
            *(_value(arm, metric["kind"]) for arm in arms),
            _ratio(metric),
            NOTHING if metric["effect"] is None else f"{metric['p_value']:.2g}",
            _factor(metric["smallest"]),
            _factor(metric["tolerance"]),
        )
    return table


def _plain(found: Mapping[str, Any]) -> Table:
    """Rates of both arms as they are, where nothing has been compared yet."""
    table = _table("metric", "canary", "control")
    for name in _PLAIN:
        table.add_row(
            name.removesuffix("_rate"),
            *(share(found["arms"][arm][name]) for arm in ("canary", "control")),
        )
    return table


def _value(arm: Mapping[str, Any], kind: str) -> str:
    if arm["value"] is None:
        return NOTHING
    return share(arm["value"]) if kind == "rate" else _level(arm["value"])


def _level(value: float) -> str:
    """``123.5M`` for a large one."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _ratio(metric: Mapping[str, Any]) -> str:
    if metric["effect"] is None:
        return NOTHING
    if metric["low"] is None or metric["high"] is None:
        return _factor(metric["effect"])
    return f"{_factor(metric['effect'])} ({metric['low']:.3g}–{metric['high']:.3g})"


def _factor(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}x"


def _looks(found: Mapping[str, Any]) -> list[Text]:
    compared = found["comparison"]
    if not compared or found["final"]:
        return []
    text = f"look {compared['look']} of {compared['looks']}"
    if compared["reported"] is not None:
        text += f", {compared['reported']} of {compared['canaries']} canary devices in it"
    if compared["next_look_s"] is not None:
        text += f"; the next {_until(compared['next_look_s'], found['now_s'])}"
    if any(metric["holds"] for metric in compared["metrics"]):
        text += "; * holds the stage"
    return [Text(text, style="dim")]


def _outlook(found: Mapping[str, Any]) -> list[RenderableType]:
    """What would make it go on; the reason alone where nothing does, or it is over."""
    waits = found["waits"]
    if not waits:
        return [Text(), Text(found["reason"])]
    listed = Table.grid(padding=(0, 1))  # a long one goes on below itself, not below its bullet
    for wait in waits:
        text = wait["words"]
        if wait["until_s"] is not None:
            text += f" ({_until(wait['until_s'], found['now_s'])})"
        listed.add_row(" •", Text(text))
    return [Text(), Text("goes on with", style="bold"), listed]


def _until(at_s: float, now_s: float) -> str:
    left_s = int(at_s - now_s)
    return f"in {seconds(left_s)}" if left_s >= 1 else "now"


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
