"""``fleet audit``: what operators did, and whether the log of it is whole.

Rules kept here: the chain is computed here and not taken from the server's word; a log that is not whole ends with 3.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import typer

from fleet.cli.client import FleetClient, ServerOption
from fleet.cli.output import JsonOption, errors, print_json, print_table, say
from fleet.cli.rollout_view import when
from fleet.cli.token import HomeOption, home_at_hand
from fleet.operators import folder
from fleet.operators.chain import Entry, Head, check_chain, parse_entry, parse_head

__all__ = ["app"]

_PAGE: Final = 1000
_MAX_PAGES: Final = 10_000

app = typer.Typer(
    no_args_is_help=True,
    help="See what operators did and tried, and check that nobody changed the log of it.",
)


@app.command("list")
def list_entries(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 50,
    home: HomeOption = None,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """List what was done and what was refused, the newest last."""
    with errors(as_json):
        place = home_at_hand(home, server)
        if place is not None:
            found = [entry.to_json() for entry in folder.list_entries(place, limit)]
        else:
            with FleetClient(server) as client:
                found = client.get_json("/v1/audit", {"limit": limit})["entries"]
    if as_json:
        print_json({"entries": found})
        return
    print_table(
        "Audit log",
        ("number", "when", "who", "role", "what", "to what", "outcome", "why"),
        [_row(entry) for entry in reversed(found)],
        drop=("role",),
        whole=("number", "when", "outcome"),
    )


@app.command()
def verify(
    expect: Annotated[
        list[str] | None,
        typer.Option(
            "--expect",
            metavar="NUMBER:SHA256",
            help="A head of the log that you kept elsewhere; it must lie on the chain. May be repeated.",
        ),
    ] = None,
    home: HomeOption = None,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Compute the chain of the whole log again. Exits 3 when an entry was altered, removed, moved or cut off."""
    with errors(as_json):
        expected = [parse_head(text) for text in expect or []]
        place = home_at_hand(home, server)
        if place is not None:
            head = folder.verify_log(place, *expected)
        else:
            with FleetClient(server) as client:
                head = _verify_over_http(client, expected)
    if as_json:
        print_json({"whole": True, "number": head.number, "sha256": head.sha256})
        return
    say(f"the audit log is whole: {head.number} entries")
    if head.number:
        say(f"head {head}: keep it elsewhere, and give it to --expect the next time")


def _verify_over_http(client: FleetClient, expected: list[Head]) -> Head:
    """Raises RefusedError: the log is not whole. RequestError: the server sends what is none."""
    pages: list[list[Entry]] = []
    before, said = 0, ""
    for _ in range(_MAX_PAGES):
        asked: dict[str, str | int] = {"limit": _PAGE, "before": before}
        page = client.get_json("/v1/audit", asked)
        entries = [parse_entry(raw) for raw in page["entries"]]
        said = said or page["head"]
        pages.append(entries)
        if len(entries) < _PAGE:
            break
        before = entries[-1].number
    return check_chain(_oldest_first(pages), [*expected, parse_head(said)])


def _oldest_first(pages: list[list[Entry]]) -> Iterator[Entry]:
    for page in reversed(pages):
        yield from reversed(page)


def _row(entry: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        entry["number"],
        when(entry["at_ms"] / 1000),
        entry["name"],
        entry["role"],
        entry["operation"],
        entry["object"],
        entry["outcome"],
        entry["reason"],
    )
