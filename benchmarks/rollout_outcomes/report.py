"""Outcomes as a table, for a terminal and for results.md. Pure."""

import re
from collections.abc import Sequence
from typing import Final

from benchmarks.rollout_outcomes.run import Outcome, Setting

__all__ = ["markdown", "terminal"]

_CLAUSE_ENDS: Final = re.compile(r"; (?![^()]*\))")  # not inside brackets


def terminal(outcomes: Sequence[Outcome]) -> str:
    """A block a case."""
    lines = []
    for one in outcomes:
        audit = "equal" if one.audit_equal else "NOT EQUAL"
        lines += [
            f"{'ok   ' if one.is_right else 'WRONG'} {one.case.name}: {one.case.fault}",
            f"      {one.ended} after {one.minutes:g} min by {', '.join(one.guards) or 'no guard'}; "
            f"{one.exposed} devices exposed ({one.real_exposed} real); audit {audit}, "
            f"{one.looks} looks",
            f"      {one.reason}",
        ]
    return "\n".join(lines)


def markdown(outcomes: Sequence[Outcome], setting: Setting) -> str:
    """The section of results.md."""
    stages = ", ".join(f"{percent:g} % for {bake_s:g} s" for percent, bake_s in setting.stages)
    rows = [
        f"| {one.case.fault} | {one.ended}{'' if one.is_right else ' (wrong)'} | "
        f"{', '.join(one.guards) or '-'} | {one.minutes:g} | {one.exposed} | "
        f"{'equal' if one.audit_equal else 'not equal'} |"
        for one in outcomes
    ]
    return "\n".join(
        [
            "## Faults over the wire",
            "",
            f"`python -m benchmarks.rollout_outcomes --devices {setting.devices} --publish`, one run: a real fleet "
            f"manager with its embedded broker,",
            f"{setting.devices} simulated devices and {setting.agents} real agents with traffic and feedback, all "
            f"rollouts of one fleet. Stages: {stages}.",
            f"Simulated devices report every {setting.window_s:g} s, and every {setting.cohort_window_s:g} s "
            "in a comparison (real ones would every 15 s).",
            "Minutes are those until the decision; exposed devices have answered requests with the bundle.",
            "",
            "| what is wrong with the bundle | outcome | by | minutes | devices exposed | audit |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "The first thing that each decision said:",
            "",
            *(f"- {one.case.fault}: *{_CLAUSE_ENDS.split(one.reason)[0]}*" for one in outcomes),
        ]
    )
