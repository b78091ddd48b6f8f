"""``fleet init``: make a fleet folder."""

import time
from collections.abc import Sequence
from pathlib import Path

import typer

from fleet.cli.output import JsonOption, console, errors, print_json, print_table, say
from fleet.config import check_fleet_name, example_config
from fleet.errors import ConfigError, ConflictError, ServerError
from fleet.home import Home, home_of
from fleet.repository import init_repository
from fleet.repository.claims import ClaimsRule
from fleet.repository.keys import (
    CLAIMS,
    create_claims_key,
    key_path,
    offline_folder,
    offline_key_path,
    read_password,
)
from fleet.repository.roles import SIMPLE_ROLES, RolePlan, production_roles
from fleet.store import open_store

__all__ = ["init"]


def init(
    directory: Path | None = typer.Argument(
        None, metavar="[DIR]", help="Folder to make; by default $MUSTER_HOME, else ./muster-fleet."
    ),
    name: str = typer.Option("fleet", "--name", help="The fleet's name, part of every topic."),
    production: bool = typer.Option(
        False,
        "--production",
        help="Several keys a role and thresholds, to be kept apart from the server.",
    ),
    device_class: list[str] = typer.Option(
        [],
        "--class",
        metavar="CLASS",
        help="With --production: a device class, which gets a release role of its own. Repeatable.",
    ),
    password_file: Path | None = typer.Option(
        None,
        "--password-file",
        metavar="FILE",
        help="With --production: encrypt the offline keys with the password in this file.",
    ),
    as_json: bool = JsonOption,
) -> None:
    """Make a fleet folder: configuration, keys, signed metadata, database."""
    with errors(as_json):
        home = Home(home_of(directory))
        if not production and (device_class or password_file):
            raise ConfigError("--class and --password-file go with --production: add it")
        plan = production_roles(device_class) if production else SIMPLE_ROLES
        password = None if password_file is None else read_password(password_file)
        make_home(home, name, time.time(), plan, password)
        if as_json:
            body = {"home": str(home.path), "name": name, "root": str(home.root)}
            offline = [str(path) for path in sorted(offline_folder(home.path).glob("*.pem"))]
            print_json(body | ({"offline_keys": offline} if production else {}))
            return
        console.print(
            f"Fleet [bold]{name}[/bold] is ready in {home.path}",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
        keys = "signing keys: keep root, targets, release and claims away from the server"
        if production:
            keys = "the server's own keys: rollout, snapshot, timestamp"
        console.print(
            f"  {home.config.name:<12} configuration, documented\n"
            f"  {'keys/':<12} {keys}\n"
            f"  {home.root.name:<12} what a device is given to trust this fleet\n"
            f"  {home.claims_public.name:<14} what `model_signing verify key` checks its bundles by\n"
            f"Start it: fleet serve --home {home.path}",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
        if production:
            _say_where_keys_go(home, plan)


def _say_where_keys_go(home: Home, plan: Sequence[RolePlan]) -> None:
    """What is left to do by hand, before the fleet is any safer than with one key."""
    print_table(
        "Offline keys",
        ("role", "keys", "needed to sign", "files"),
        [
            (
                role.name,
                role.keys,
                role.threshold,
                f"keys/offline/{role.name}-1.pem ... -{role.keys}.pem",
            )
            for role in plan
            if role.offline
        ]
        + [("(none: claims about bundles)", 1, 1, f"keys/offline/{CLAIMS}-1.pem")],
    )
    say(
        f"Next: move each file in {offline_folder(home.path)} to the medium of the person who is to hold it, "
        "no two of a role to the same one, and keep a copy of each in a safe place. `fleet serve` warns "
        "while one of them is still here."
    )
    say(
        f"Give every holder {home.root.name} too: `fleet key sign --root {home.root.name}` then refuses what "
        "another fleet asks."
    )


def make_home(
    home: Home,
    name: str,
    now_s: float,
    plan: Sequence[RolePlan] = SIMPLE_ROLES,
    password: bytes | None = None,
) -> None:
    """Make everything a fleet folder holds; ``password`` encrypts the offline keys of the plan.

    Raises:
        ConflictError: there is a fleet in it already. ConfigError: the name is not allowed.
        ServerError: it cannot be written.
    """
    check_fleet_name(name)
    if home.config.exists() or home.database.exists():
        raise ConflictError(f"{home.path} is a fleet folder already: choose another one")
    production = any(role.offline for role in plan)
    root = init_repository(
        home.path,
        fleet_name=name,
        now_s=now_s,
        plan=plan,
        password=password,
        claims=_claims_rule(home, password, production=production),
    )
    try:
        home.artifacts.mkdir(exist_ok=True)
        home.root.write_bytes(root)
        open_store(home.database).close()
        # Last: a folder with a configuration is a whole one.
        home.config.write_text(example_config(name), encoding="utf-8")
    except OSError as error:
        raise ServerError(f"{home.path} cannot be written: {error.strerror}") from error


def _claims_rule(home: Home, password: bytes | None, *, production: bool) -> ClaimsRule:
    """The key for claims about bundles, newly made, is believed; with thresholds every new bundle needs its word."""
    path = offline_key_path(home.path, CLAIMS, 1) if production else key_path(home.path, CLAIMS)
    try:
        home.path.mkdir(parents=True, exist_ok=True)
        for folder in (home.path / "keys", path.parent):
            folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise ServerError(f"cannot make {path.parent}: {error.strerror or error}") from error
    signer = create_claims_key(path, home.claims_public, password if production else None)
    return ClaimsRule((signer.public_key,), required=production)
