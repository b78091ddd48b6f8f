"""``fleet token``: who may use the HTTP API, and in which role.

Rules kept here: where the fleet folder is at hand tokens are made in it, whether the fleet manager runs or not, for who
may write the folder may do everything anyway; elsewhere an admin's token makes them. A token is printed once.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet.cli.client import FleetClient, ServerOption
from fleet.cli.output import JsonOption, errors, print_json, print_table, progress_console, say
from fleet.cli.rollout_view import when
from fleet.errors import RequestError
from fleet.home import Home, home_of
from fleet.operators import folder
from fleet.operators.roles import Role, parse_scope
from fleet.operators.tokens import Wanted
from fleet.rollout.reading import parse_duration

__all__ = ["app", "home_at_hand"]

app = typer.Typer(
    no_args_is_help=True,
    help="Let people and programs use the fleet manager: tokens with a role, an end, and a name for the audit log.",
)

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Fleet folder to work on; by default $MUSTER_HOME, else ./muster-fleet, if it is there and no --server is "
        "given.",
    ),
]


def home_at_hand(home: Path | None, server: str) -> Home | None:
    """The fleet folder to work on; None: ask the fleet manager.

    Raises:
        RequestError: both are given.
    """
    if home is not None and server:
        raise RequestError("--home and --server exclude each other: give one of them")
    if server or (home is None and os.environ.get("MUSTER_SERVER", "")):
        return None
    place = Home(home_of(home))
    return place if home is not None or place.database.is_file() else None


@app.command()
def create(  # noqa: PLR0913, PLR0917 -- each parameter is an option
    name: Annotated[str, typer.Argument(help="What it is called in lists and in the audit log.")],
    role: Annotated[
        Role, typer.Option("--role", help="viewer sees, operator rolls out, admin makes tokens.")
    ],
    expires: Annotated[str, typer.Option("--expires", help="How long it is good.")] = "90d",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="model=NAME,class=NAME",
            help="What an operator may change, all without; may be repeated.",
        ),
    ] = None,
    home: HomeOption = None,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Make a token and print it. It is shown this once: what is kept is its digest."""
    with errors(as_json):
        kinds = _scope(scope or [])
        life_s = parse_duration(expires, "--expires")
        place = home_at_hand(home, server)
        if place is not None:
            wanted = Wanted(name, role, life_s, parse_scope(kinds, role))
            made = folder.create_token(place, wanted).to_json()
        else:
            body = {"name": name, "role": str(role), "life_s": life_s, "scope": kinds}
            with FleetClient(server) as client:
                made = client.post_json("/v1/tokens", body)
    if as_json:
        print_json(made)
        return
    say(made["token"])
    say(
        f"{name}: {role}{_in_words(made['scope'])}, until {when(made['expires_s'])} UTC. It is not shown again. Keep "
        "it in $MUSTER_TOKEN or, readable by you alone, in ~/.config/muster/token",
        stream=progress_console,
    )


@app.command("list")
def list_tokens(
    home: HomeOption = None, server: str = ServerOption, as_json: bool = JsonOption
) -> None:
    """List every token there ever was: role, scope, last use, and whether it is good."""
    with errors(as_json):
        place = home_at_hand(home, server)
        if place is not None:
            found: dict[str, Any] = {"tokens": list(folder.list_tokens(place))}
        else:
            with FleetClient(server) as client:
                found = client.get_json("/v1/tokens")
    if as_json:
        print_json(found)
        return
    print_table(
        "Tokens",
        ("name", "id", "role", "scope", "made by", "until", "last used", "state"),
        [_row(one) for one in found["tokens"]],
        empty="none; make one with `fleet token create NAME --role viewer`",
        drop=("id", "made by", "last used"),
        whole=("name", "role", "state"),
    )


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name or id of the token.")],
    home: HomeOption = None,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Take a token back. It counts from the next request on."""
    with errors(as_json):
        place = home_at_hand(home, server)
        if place is not None:
            revoked = folder.revoke_token(place, name)
        else:
            with FleetClient(server) as client:
                revoked = client.post_json(f"/v1/tokens/{name}/revoke")["name"]
    if as_json:
        print_json({"name": revoked})
    else:
        say(f"{revoked}: revoked")


def _scope(texts: Sequence[str]) -> dict[str, list[str]]:
    """``model=a,model=b`` and ``class=edge`` by kind. Raises RequestError."""
    kinds: dict[str, list[str]] = {}
    for part in (part for text in texts for part in text.split(",")):
        kind, equals, value = part.strip().partition("=")
        if not equals:
            raise RequestError(
                f"--scope {part!r:.60} is not understood: write model=NAME or class=NAME"
            )
        kinds.setdefault(kind, []).append(value)
    return kinds


def _in_words(scope: Mapping[str, Sequence[str]]) -> str:
    said = ", ".join(f"{kind}={value}" for kind, values in scope.items() for value in values)
    return f" for {said}" if said else ""


def _row(one: Mapping[str, Any]) -> tuple[object, ...]:
    used = "never" if one["last_used_s"] is None else when(one["last_used_s"])
    state = one["state"]
    if state == "revoked":
        state = f"revoked by {one['revoked_by']}"
    scope = _in_words(one["scope"]).removeprefix(" for ") or "all"
    until = when(one["expires_s"])
    return (one["name"], one["id"], one["role"], scope, one["created_by"], until, used, state)
