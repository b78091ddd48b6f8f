"""How every command speaks: tables for people, ``--json`` for machines, one exit code a kind of ending.

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by a check, 4 still holding.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Final, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.errors import AgentError, BundleError, TrustError
from fleet.errors import ConfigError, FleetError, RefusedError, RequestError

__all__ = [
    "ExitCode",
    "JsonOption",
    "console",
    "errors",
    "exit_code_of",
    "print_json",
    "print_table",
    "progress_console",
    "say",
]


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    HOLDING = 4


JsonOption = typer.Option(False, "--json", help="Print JSON for machines instead of tables.")

PIPED_WIDTH: Final = 160  # columns where no terminal says how many it has


def _console(stream: TextIO, *, stderr: bool) -> Console:
    known = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, soft_wrap=False, width=None if known else PIPED_WIDTH)


console = _console(sys.stdout, stderr=False)
# Progress and errors go to stderr, so that stdout is the result and nothing else.
progress_console = _console(sys.stderr, stderr=True)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def say(text: str, *, style: str = "", stream: Console | None = None) -> None:
    """A sentence, as it is: folded between words on a terminal, one line where a program reads it."""
    to = stream or console
    to.print(text, style=style, markup=False, highlight=False, soft_wrap=not to.is_terminal)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    empty: str = "none",
    *,
    drop: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """A table for people; ``empty`` is said when there are no rows.

    Where it does not fit, the columns ``drop`` go, in this order, before a word is broken; those in
    ``whole`` are never folded; the last column keeps room for prose if it has any.
    """
    if not rows:
        say(f"{title}: {empty}")
        return
    # Text, not markup: what a device or a bundle says of itself is shown as it is.
    texts = [[Text("" if cell is None else str(cell)) for cell in row] for row in rows]
    least = [
        _least([Text(name), *(row[at] for row in texts)], name in whole, at == len(columns) - 1)
        for at, name in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    for name in drop:
        if _table_width([least[at] for at in shown]) <= console.width:
            break
        shown.remove(columns.index(name))
    longest = [
        max(Text(columns[at]).cell_len, *(_longest_line(row[at]) for row in texts)) for at in shown
    ]
    table = Table(title=title, title_justify="left", header_style="bold", show_header=any(columns))
    for at, width in zip(shown, _widths([least[at] for at in shown], longest), strict=True):
        table.add_column(columns[at], overflow="fold", width=width)
    for row in texts:
        table.add_row(*(row[at] for at in shown))
    console.print(table)
    missing = [name for at, name in enumerate(columns) if at not in shown]
    if missing:
        say(f"(no room for: {', '.join(missing)})", style="dim")


PROSE_WIDTH: Final = 24  # columns that the last column of a table keeps, if it has so much to say


def _table_width(widths: Sequence[int]) -> int:
    return sum(widths) + 3 * len(widths) + 1  # borders, and one blank on each side of a cell


def _least(texts: Sequence[Text], is_whole: bool, is_last: bool) -> int:
    """Width below which a column would break a word."""
    longest = max(_longest_line(text) for text in texts)
    if is_whole:
        return longest
    words = [Text(word).cell_len for text in texts for word in text.plain.split()]
    return max([*words, PROSE_WIDTH if is_last and longest > PROSE_WIDTH else 1])


def _longest_line(text: Text) -> int:
    return max((Text(line).cell_len for line in text.plain.splitlines()), default=0)


def _widths(least: Sequence[int], longest: Sequence[int]) -> list[int | None]:
    """Widths of columns that fit the terminal; None where the table fits as it is.

    What is left above the least goes to those who need little of it first, so that short columns
    keep their one line, but never more than half of it at once: the rest is for prose.
    """
    if _table_width(longest) <= console.width:
        return [None] * len(longest)
    widths = list(least)
    while _table_width(widths) > console.width and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1  # a word has to break: in the widest column
    left = max(0, console.width - _table_width(widths))
    needs = sorted(range(len(widths)), key=lambda at: longest[at] - widths[at])
    for at in needs:
        need = longest[at] - widths[at]
        if 0 < need <= left // 2:
            widths[at] += need
            left -= need
    widths[needs[-1]] += left
    return list(widths)


def exit_code_of(error: Exception) -> ExitCode:
    """The exit code for an error of ours."""
    if isinstance(error, RefusedError | BundleError | TrustError):
        return ExitCode.REFUSED
    if isinstance(error, ConfigError | RequestError):
        return ExitCode.USAGE
    return ExitCode.FAILED


@contextmanager
def errors(as_json: bool = False) -> Iterator[None]:
    """Turn an error of ours into one clear message on stderr and its exit code; everything else is a bug and shows."""
    try:
        yield
    except (FleetError, AgentError) as error:
        code = exit_code_of(error)
        if as_json:
            body: Mapping[str, Any] = {
                "error": type(error).__name__,
                "message": str(error),
                "exit_code": int(code),
            }
            print_json(body)
        else:
            say(f"error: {error}", style="red", stream=progress_console)
        raise typer.Exit(int(code)) from error
