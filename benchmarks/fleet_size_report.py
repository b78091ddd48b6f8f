"""The figures of ``benchmarks.fleet_size`` as a table and as a plot with logarithmic axes. Pure."""

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

__all__ = ["HERE", "Cost", "Run", "markdown", "plot"]

HERE: Final = Path(__file__).parent
MB: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one fleet: seconds of processor time of whole ticks, and bytes.

    A change is ``decide_s`` (reading the fleet, judging, storing) and ``sign_s`` (signing, writing).
    """

    devices: int
    canaries: int
    compared: int
    open_s: float
    tick_s: float
    first_look_s: float
    look_s: float
    decide_s: float
    sign_s: float
    next_open_s: float
    pack_bytes: int
    idle_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run: a cost for each size, and the machine's load averages before and after, sorted."""

    costs: Sequence[Cost]
    load: Sequence[float]


_SERIES: Final[dict[str, tuple[str, Callable[[Cost], float]]]] = {
    "stage change: signing": ("#1f6feb", lambda one: one.sign_s),
    "stage change: deciding": ("#d29922", lambda one: one.decide_s),
    "a look, without the tick it is in": ("#a371f7", lambda one: max(one.look_s - one.tick_s, 0)),
    "a tick with nothing new": ("#2da44e", lambda one: one.tick_s),
    "opening the first ring": ("#cf222e", lambda one: one.open_s),
}
_LEFT, _TOP, _WIDTH, _HEIGHT = 70, 62, 520, 330


def markdown(run: Run) -> str:
    """The section of the page of results."""
    lines = [
        "## What a rollout costs against the size of its fleet",
        "",
        "`python -m benchmarks.fleet_size --publish`",
        "",
        f"Processor seconds of the fleet manager's executor (Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, SQLite) with a repository that signs; not wall "
        f"time, since other work ran on the machine (load average {run.load[0]:.1f} to "
        f"{run.load[-1]:.1f}). Devices are rows of a real database: a hundred report the way of all "
        "reports, the others have copies of what that leaves. The first stage has a tenth of the "
        "fleet, at most about 1,000 devices.",
        "",
        "![processor seconds, by size of the fleet](fleet_size.svg)",
        "",
        "| devices | canary | compared | bytes of a stage change | signing it | deciding it | "
        "tick, nothing new | tick with the first look | tick with a later look | opening the first "
        "ring | opening the next ring | memory before (most) |",
        "|" + "---|" * 12,
        *(_row(one) for one in run.costs),
        "",
        f"A stage change itself, its bytes and its signature, is the same for every size. {_grows(run)}",
        "",
        "The bytes are those of the retained message that every device gets: one for the whole "
        "fleet, whoever is in the stage. A tick is a whole one: it reads every device (who is meant, "
        "and who was heard from), decides, stores and compares the directives with the signed ones. "
        "Deciding a stage change and a tick with a look have such a reading in them; the next ring "
        "of this rollout is that of its last stage, so every device is in its cohort. Memory is the "
        "resident set of the process, which holds the ids of its fleet besides.",
    ]
    return "\n".join(lines)


def _grows(run: Run) -> str:
    """What does grow with the fleet, and from where on not any more."""
    largest = max(run.costs, key=lambda one: one.devices)
    looks = ", ".join(_seconds(max(one.look_s - one.tick_s, 0.0)) for one in run.costs)
    return (
        "Reading who is there does grow: a tick costs "
        f"{1e6 * largest.tick_s / largest.devices:.1f} µs a device in the largest fleet, and "
        "opening the first ring, which reads a day of every device's past once a rollout, "
        f"{1e6 * largest.open_s / largest.devices:.1f} µs. A look itself (a tick with a later look, "
        f"less one with nothing new) takes {looks}: no more devices are compared than twenty times "
        "those of the stage, or 2,000 if that is more, so it stops growing where the stage does."
    )


def _row(one: Cost) -> str:
    seconds = (
        one.sign_s, one.decide_s, one.tick_s, one.first_look_s, one.look_s, one.open_s,
        one.next_open_s,
    )  # fmt: skip
    cells = [
        *(f"{count:,}" for count in (one.devices, one.canaries, one.compared, one.pack_bytes)),
        *(_seconds(value) for value in seconds),
        f"{one.idle_bytes / MB:,.0f} MB ({one.peak_bytes / MB:,.0f} MB)",
    ]
    return "| " + " | ".join(cells) + " |"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def plot(run: Run) -> str:
    """Processor seconds over devices, both logarithmic, a line for each of the costs."""
    values = [max(of(one), 1e-4) for _, of in _SERIES.values() for one in run.costs]
    sizes = [one.devices for one in run.costs]
    x_of = _scale(min(sizes), max(sizes), _LEFT, _LEFT + _WIDTH)
    y_of = _scale(min(values), max(values), _TOP + _HEIGHT, _TOP)
    shapes = [
        _text(12, 24, "What a rollout costs against the size of its fleet", "font-size='15' font-weight='600'"),
        _text(12, 42, "processor seconds over devices; both logarithmic", "fill='#57606a'"),
        *_grid(sizes, values, x_of, y_of),
    ]  # fmt: skip
    for number, (name, (colour, of)) in enumerate(_SERIES.items()):
        points = [(x_of(one.devices), y_of(max(of(one), 1e-4))) for one in run.costs]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        y = _TOP + 14 + 20 * number
        shapes.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        shapes += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in points]
        right = _LEFT + _WIDTH + 16
        shapes.append(f"<rect x='{right}' y='{y - 8}' width='12' height='4' fill='{colour}'/>")
        shapes.append(_text(right + 18, y - 2, name))
    width, height = _LEFT + _WIDTH + 250, _TOP + _HEIGHT + 34
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
        "role='img' aria-label='processor seconds by size of the fleet' "
        "font-family='system-ui, sans-serif' font-size='12' fill='#24292f'>"
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>"
    )
    return "\n".join([head, *shapes, "</svg>", ""])


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From whole powers of ten around ``low`` and ``high`` to places."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    span = max(last - first, 1)
    return lambda value: start + (math.log10(value) - first) / span * (end - start)


def _grid(
    sizes: Sequence[int],
    values: Sequence[float],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
) -> Sequence[str]:
    shapes = [
        _text(x_of(size), _TOP + _HEIGHT + 18, f"{size:,}", "text-anchor='middle'")
        for size in sizes
    ]
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    for power in powers:
        y = y_of(10.0**power)
        ends = f"x1='{_LEFT}' y1='{y:.1f}' x2='{_LEFT + _WIDTH}' y2='{y:.1f}'"
        shapes.append(f"<line {ends} stroke='#d0d7de'/>")
        shapes.append(_text(_LEFT - 6, y + 4, f"{10.0**power:g} s", "text-anchor='end'"))
    return shapes


def _text(x: float, y: float, said: str, style: str = "") -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' {style}>{escape(said)}</text>"
