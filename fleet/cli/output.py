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


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str = "none"
) -> None:
    """A table for people; ``empty`` is said when there are no rows."""
    if not rows:
        console.print(f"{title}: {empty}")
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(table)


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
            progress_console.print(
                f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
            )
        raise typer.Exit(int(code)) from error
