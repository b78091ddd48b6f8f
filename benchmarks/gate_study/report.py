"""What the study found, as a table, as figures and as a plot, and against the goals. Values in, text out."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.gate_study.worlds import BAKE_S, DEVICES, OURS, RINGS, WORLDS
from simulator.virtual.svg import COLOURS, Bar, bars, curves, sheet

__all__ = ["Cell", "Goal", "cells", "goals", "markdown", "plot", "terminal", "to_json"]

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One rule in one world. ``minutes`` and quartiles are of the rollouts it rolled back, from the rollout's start;
    ``exposed`` is the mean number of devices that got the bundle, all of them when it was let through."""

    world: str
    rule: str
    rollouts: int
    rolled_back: int
    in_first_ring: int
    minutes: float | None
    quartiles: tuple[float, float] | None
    exposed: float
    exposed_se: float

    @property
    def share(self) -> float:
        return self.rolled_back / self.rollouts

    @property
    def share_se(self) -> float:
        return _se(self.share, self.rollouts)


@dataclass(frozen=True, slots=True)
class Goal:
    """``met`` None: it could not be measured."""

    what: str
    wanted: str
    measured: str
    met: bool | None


def _se(share: float, rollouts: int) -> float:
    return math.sqrt(share * (1.0 - share) / rollouts)


def cells(rows: Iterable[Row]) -> Sequence[Cell]:
    """Every rule in every world of the rows."""
    by_world: dict[str, list[Row]] = {}
    for row in rows:
        by_world.setdefault(row["world"], []).append(row)
    found = []
    for world in WORLDS:
        for rule in by_world.get(world, [{"found": {}}])[0]["found"]:
            ends = [row["found"][rule] for row in by_world[world]]
            found.append(_cell(world, rule, ends))
    return found


def _cell(world: str, rule: str, ends: Sequence[Sequence[float] | None]) -> Cell:
    hits = [end for end in ends if end is not None]
    minutes = sorted(ring * BAKE_S / 60 + minute for ring, minute, _ in hits)
    exposed = [DEVICES if end is None else end[2] for end in ends]
    spread = statistics.stdev(exposed) if len(exposed) > 1 else 0.0
    quartiles = statistics.quantiles(minutes, n=4) if len(minutes) > 1 else None
    return Cell(
        world=world,
        rule=rule,
        rollouts=len(ends),
        rolled_back=len(hits),
        in_first_ring=sum(ring == 0 for ring, _, _ in hits),
        minutes=statistics.median(minutes) if minutes else None,
        quartiles=(quartiles[0], quartiles[2]) if quartiles else None,
        exposed=statistics.fmean(exposed),
        exposed_se=spread / math.sqrt(len(exposed)),
    )


def to_json(found: Sequence[Cell]) -> dict[str, Any]:
    """Every figure."""
    return {
        "devices": DEVICES,
        "rings": RINGS,
        "bake_s": BAKE_S,
        "worlds": {
            name: {"words": world.words, "bad": world.bad} for name, world in WORLDS.items()
        },
        "cells": [{**asdict(one), "share": one.share, "share_se": one.share_se} for one in found],
        "goals": [asdict(goal) for goal in goals(found)],
    }


# --- goals ----------------------------------------------------------------------------------------


def goals(found: Sequence[Cell]) -> Sequence[Goal]:
    """What was wanted, and what came out."""
    by = {(one.world, one.rule): one for one in found}
    return [
        *(_false_rollbacks(by.get((world, OURS)), world) for world in ("same", "incident", "broken")),
        _goal("x2", by, "twice the errors, found at 20 devices, median", "about 5 min (≤ 6)", _soon(6.0)),
        _goal("x1.5", by, "1.5 times the errors, found at 20 devices within the hour", "≥ 80 %", _power),
        _goal("total", by, "total failure", "at the first look (2.5 min)", _soon(2.5)),
        *(_exposed(by, world) for world in ("x1.5", "x2", "total", "class")),
    ]  # fmt: skip


def _false_rollbacks(cell: Cell | None, world: str) -> Goal:
    what = f"false rollbacks of whole rollouts: {WORLDS[world].words}"
    if cell is None:
        return Goal(what, "≤ 1 % + 3 s.e.", "not measured", None)
    limit = 0.01 + 3 * _se(0.01, cell.rollouts)
    measured = f"{cell.share:.2%} ± {cell.share_se:.2%} of {cell.rollouts:,} (limit {limit:.2%})"
    return Goal(what, "≤ 1 % + 3 s.e.", measured, cell.share <= limit)


def _goal(world: str, by: Mapping[Any, Cell], what: str, wanted: str, judge: Any) -> Goal:
    cell = by.get((world, OURS))
    return Goal(what, wanted, "not measured", None) if cell is None else judge(cell, what, wanted)


def _soon(limit_min: float) -> Any:
    def judge(cell: Cell, what: str, wanted: str) -> Goal:
        if cell.minutes is None:
            return Goal(what, wanted, "never found", False)
        return Goal(what, wanted, f"{cell.minutes:.3g} min", cell.minutes <= limit_min)

    return judge


def _power(cell: Cell, what: str, wanted: str) -> Goal:
    share = cell.in_first_ring / cell.rollouts
    said = f"{share:.1%} ± {_se(share, cell.rollouts):.1%}"
    return Goal(what, wanted, said, share >= 0.8)


def _exposed(by: Mapping[Any, Cell], world: str) -> Goal:
    """Against the best rule of those that raise no more false alarms than ours, within chance."""
    what = f"mean devices exposed: {WORLDS[world].words}"
    wanted = "≤ the best rule with as few false rollbacks, within 3 s.e."
    ours, same = by.get((world, OURS)), by.get(("same", OURS))
    if ours is None or same is None:
        return Goal(what, wanted, "not measured", None)
    limit = max(0.01, same.share) + 3 * _se(0.01, same.rollouts)
    rivals = [
        one
        for (of, rule), one in by.items()
        if of == world and rule != OURS and by[("same", rule)].share <= limit
    ]
    best = min(rivals, key=lambda one: one.exposed, default=None)
    said = f"{ours.exposed:.0f} ± {ours.exposed_se:.0f}"
    if best is None:
        return Goal(what, wanted, f"{said}; no other rule has as few false rollbacks", True)
    within = ours.exposed <= best.exposed + 3 * math.hypot(ours.exposed_se, best.exposed_se)
    return Goal(what, wanted, f"{said}; {best.rule} {best.exposed:.0f}", within)


# --- text -----------------------------------------------------------------------------------------

_HEAD: Final = (
    "rule",
    "rolled back",
    "in ring one",
    "minutes to a rollback: median (quartiles)",
    "devices exposed",
)


def _row(cell: Cell) -> tuple[str, ...]:
    minutes = "–" if cell.minutes is None else f"{cell.minutes:.3g}"
    if cell.quartiles is not None:
        minutes += f" ({cell.quartiles[0]:.3g} to {cell.quartiles[1]:.3g})"
    exposed = f"{cell.exposed:,.0f} ± {cell.exposed_se:,.0f}" if WORLDS[cell.world].bad else "–"
    first = f"{cell.in_first_ring / cell.rollouts:.1%}"
    return (cell.rule, f"{cell.share:.1%} ± {cell.share_se:.1%}", first, minutes, exposed)


def markdown(found: Sequence[Cell], measured_on: str, plot_name: str = "") -> str:
    """The section of results.md."""
    rings = ", ".join(f"{share:.0%}" for share in RINGS)
    parts = [
        "## The gate and other rules on the same rollouts",
        "",
        "`python -m benchmarks.gate_study --publish`",
        "",
        f"{measured_on} {DEVICES:,} devices; error rates Beta with mean 2 % and intra-class correlation 0.02; 30 "
        f"requests a minute; rings of {rings}, an hour each; devices of a ring and as many others report every 15 s, "
        "the rest every 60 s. Every rule is asked about the same requests. A rollout is counted as rolled back if "
        "that happens in any of its rings; ± is one standard error. The other rules are written from their tools' "
        "descriptions (`simulator/virtual/peers.py`), with limits set from the fleet's own baseline; the last five are "
        "the same rules with limits so wide that about one good bundle in a hundred is rolled back.",
        "",
    ]
    if plot_name:
        parts += [f"![false rollbacks and time to a right one, by rule]({plot_name})", ""]
    for name, world in WORLDS.items():
        of = [one for one in found if one.world == name]
        if not of:
            continue
        kind = "a rollback is right" if world.bad else "every rollback is false"
        parts += [f"### {world.words[:1].upper()}{world.words[1:]}: {kind}", ""]
        parts += [
            f"{of[0].rollouts:,} rollouts.",
            "",
            f"| {' | '.join(_HEAD)} |",
            "|---|---|---|---|---|",
        ]
        parts += [f"| {' | '.join(_row(one))} |" for one in of] + [""]
    verdict = {True: "met", False: "**missed**", None: "–"}
    parts += ["### Against the goals", "", "| what | goal | measured | |", "|---|---|---|---|"]
    parts += [f"| {g.what} | {g.wanted} | {g.measured} | {verdict[g.met]} |" for g in goals(found)]
    return "\n".join([*parts, ""])


def terminal(found: Sequence[Cell]) -> str:
    """The same for a terminal."""
    lines = []
    for name, world in WORLDS.items():
        of = [one for one in found if one.world == name]
        if of:
            lines += ["", f"{name}: {world.words} ({of[0].rollouts:,} rollouts)"]
            lines += [
                "  " + "  ".join(f"{text:<24}" for text in row) for row in (_HEAD, *map(_row, of))
            ]
    lines += ["", "goals"]
    for goal in goals(found):
        mark = {True: "met   ", False: "MISSED", None: "-     "}[goal.met]
        lines.append(f"  {mark} {goal.what}: {goal.measured} (wanted {goal.wanted})")
    return "\n".join(lines)


# --- plot -----------------------------------------------------------------------------------------


def plot(found: Sequence[Cell], rows: Sequence[Row]) -> str:
    """False rollbacks as bars, and for two bad bundles the share found over time."""
    rules = list(dict.fromkeys(one.rule for one in found))
    colour = {rule: COLOURS[number % len(COLOURS)] for number, rule in enumerate(rules)}
    drawn = []
    for name, world in WORLDS.items():
        of = [one for one in found if one.world == name]
        if of and not world.bad:
            drawn.append(
                bars(f"False rollbacks: {world.words}", [_bar(one, colour) for one in of], 1.0)
            )
    for name in ("x1.5", "x2"):
        of_world = [row for row in rows if row["world"] == name]
        if of_world:
            series = {rule: _found_by(of_world, rule) for rule in rules}
            title = f"Rolled back by then: {WORLDS[name].words}"
            drawn.append(curves(title, series, ("minutes since the rollout began", "")))
    said = f"{DEVICES:,} simulated devices, rings of 1, 5 and 25 %, an hour each; whiskers are 2 standard errors"
    return sheet("The gate and other rules on the same rollouts", said, drawn)


def _bar(cell: Cell, colour: Mapping[str, str]) -> Bar:
    two = 2 * cell.share_se
    low, high = cell.share - two, cell.share + two
    return Bar(cell.rule, cell.share, low, high, f"{cell.share:.1%}", colour[cell.rule])


def _found_by(rows: Sequence[Row], rule: str) -> Sequence[tuple[float, float]]:
    ends = [row["found"][rule] for row in rows]
    minutes = sorted(end[0] * BAKE_S / 60 + end[1] for end in ends if end is not None)
    points = [(0.0, 0.0)]
    points += [(at, (number + 1) / len(ends)) for number, at in enumerate(minutes)]
    return [*points, (len(RINGS) * BAKE_S / 60, points[-1][1])]
