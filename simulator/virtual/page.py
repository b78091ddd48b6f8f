"""A study as one HTML file: figures, plots and every seed. Values in, text out.

Rules kept here: the page needs nothing but itself (no script, no font, no picture from elsewhere);
whatever comes from a scenario or a reason is escaped.
"""

from collections.abc import Sequence
from html import escape
from typing import Final

from simulator.virtual.run import VirtualOutcome
from simulator.virtual.study import Study
from simulator.virtual.svg import COLOURS, Bar, bars, curves, sheet

__all__ = ["study_page"]

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 860px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; width: 100%; margin: 1em 0 2em }
th, td { text-align: left; padding: .3em .8em .3em 0; border-bottom: 1px solid #d0d7de; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
svg { max-width: 100%; height: auto }
"""


def study_page(study: Study, outcomes: Sequence[VirtualOutcome], toml: str) -> str:
    """The page of a study; ``toml`` is the scenario's text, shown at the end."""
    figures = "".join(
        f"<tr><th scope='row'>{escape(what)}</th><td>{escape(figure)}</td></tr>"
        for what, figure in study.rows()
    )
    title = f"fleet-sim study: {study.scenario}"
    return "\n".join(
        [
            "<!doctype html>",
            "<html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width'>",
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<table>{figures}</table>",
            _plots(study, outcomes),
            "<h2>Every seed</h2>",
            _seeds(outcomes),
            f"<h2>The scenario</h2><pre>{escape(toml)}</pre>",
            "</body></html>",
            "",
        ]
    )


def _plots(study: Study, outcomes: Sequence[VirtualOutcome]) -> str:
    ends = (
        ("rolled back", study.rolled_back, COLOURS[4]),
        ("promoted", study.promoted, COLOURS[3]),
        ("left holding", study.holding, COLOURS[5]),
    )
    rows = [
        Bar(
            name,
            share.value,
            *share.interval,
            f"{share.value:.1%}",
            colour,
        )
        for name, share, colour in ends
    ]
    latest = max((one.after_s / 60.0 for one in outcomes), default=0.0)
    points = [(0.0, 0.0)]
    points += [(at, (n + 1) / len(outcomes)) for n, at in enumerate(study.minutes)]
    points.append((latest, points[-1][1]))
    drawn = [
        bars("How the rollouts ended", rows, 1.0),
        curves("Rolled back by then", {study.verdict: points}, ("minutes since the start", "")),
    ]
    said = f"{len(outcomes)} rollouts of {study.devices:,} devices; whiskers hold the true share 19 times of 20"
    return sheet(study.scenario, said, drawn)


def _seeds(outcomes: Sequence[VirtualOutcome]) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("seed", "end", "stage", "minutes", "exposed", "because")
    )
    lines = []
    for one in outcomes:
        numbers = (one.stage + 1, f"{one.after_s / 60:.1f}", one.exposed)
        cells = "".join(f"<td class='number'>{number}</td>" for number in numbers)
        lines.append(
            f"<tr><td class='number'>{one.seed}</td><td>{escape(one.state)}</td>{cells}"
            f"<td>{escape(one.reason)}</td></tr>"
        )
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
