"""``fleet init``: make a fleet folder."""

import time
from pathlib import Path

import typer

from fleet.cli.output import JsonOption, console, errors, print_json
from fleet.config import check_fleet_name, example_config
from fleet.errors import ConflictError, ServerError
from fleet.home import Home, home_of
from fleet.repository import init_repository
from fleet.store import open_store

__all__ = ["init"]


def init(
    directory: Path | None = typer.Argument(
        None, metavar="[DIR]", help="Folder to make; by default $MUSTER_HOME, else ./muster-fleet."
    ),
    name: str = typer.Option("fleet", "--name", help="The fleet's name, part of every topic."),
    as_json: bool = JsonOption,
) -> None:
    """Make a fleet folder: configuration, keys, signed metadata, database."""
    with errors(as_json):
        home = Home(home_of(directory))
        make_home(home, name, time.time())
        if as_json:
            print_json({"home": str(home.path), "name": name, "root": str(home.root)})
            return
        console.print(
            f"Fleet [bold]{name}[/bold] is ready in {home.path}",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
        console.print(
            f"  {home.config.name:<12} configuration, documented\n"
            f"  {'keys/':<12} signing keys: keep root, targets and release away from the server\n"
            f"  {home.root.name:<12} what a device is given to trust this fleet\n"
            f"Start it: fleet serve --home {home.path}",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )


def make_home(home: Home, name: str, now_s: float) -> None:
    """Make everything a fleet folder holds.

    Raises:
        ConflictError: there is a fleet in it already. ConfigError: the name is not allowed.
        ServerError: it cannot be written.
    """
    check_fleet_name(name)
    if home.config.exists() or home.database.exists():
        raise ConflictError(f"{home.path} is a fleet folder already: choose another one")
    root = init_repository(home.path, fleet_name=name, now_s=now_s)
    try:
        home.artifacts.mkdir(exist_ok=True)
        home.root.write_bytes(root)
        open_store(home.database).close()
        # Last: a folder with a configuration is a whole one.
        home.config.write_text(example_config(name), encoding="utf-8")
    except OSError as error:
        raise ServerError(f"{home.path} cannot be written: {error.strerror}") from error
