"""``fleet key rotate``: give a role a new key while devices follow."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import typer

from fleet.cli.output import ExitCode, JsonOption, errors, print_json, progress_console, say
from fleet.cli.signing_files import request_json, save_request, tell_request
from fleet.config import load_config
from fleet.errors import RequestError
from fleet.home import Home, home_of
from fleet.repository import Repository
from fleet.repository.change_keys import ChangedKey, KeyWish, change_key
from fleet.repository.configured import online_keys
from fleet.repository.roles import ONLINE_ROLES
from fleet.repository.rotation import short
from fleet.repository.signers import Secrets, absolute_uri

__all__ = ["rotate"]


def rotate(  # noqa: PLR0913, PLR0917 -- each parameter is an option
    role: str = typer.Argument(metavar="ROLE", help="Whose key: root, targets, timestamp, ..."),
    home: Path | None = typer.Option(
        None, "--home", help="Fleet folder; by default $MUSTER_HOME, else ./muster-fleet."
    ),
    generate: bool = typer.Option(
        False, "--generate", help="Make the new key here; so it is without --new-key."
    ),
    new_key: str = typer.Option(
        "",
        "--new-key",
        metavar="URI",
        help="The new key: a PEM file, private or public, or "
        "pkcs11:token=NAME;id=%01?module-path=LIBRARY.",
    ),
    revoke: str = typer.Option(
        "",
        "--revoke",
        metavar="KEYID",
        help="The key to take away, by the beginning of its id; needed where the role has several.",
    ),
    key: list[str] | None = typer.Option(
        None,
        "--key",
        metavar="URI",
        help="A key to sign with that lies elsewhere; may be repeated.",
    ),
    password_file: Path | None = typer.Option(
        None,
        "--password-file",
        help="Its first line is the password of key files, or the PIN of a token.",
    ),
    out: Path | None = typer.Option(
        None,
        "--out",
        metavar="FILE",
        help="Where to write the signing request, if keys that have to sign are elsewhere.",
    ),
    as_json: bool = JsonOption,
) -> None:
    """Replace a key of a role; devices follow by themselves. Stop the fleet manager first.

    Where keys that have to sign are elsewhere, a signing request is written instead. Exit code 4: it is to be signed.
    """
    with errors(as_json):
        if generate and new_key:
            raise RequestError("--generate makes a key and --new-key names one: give one of them")
        asked = KeyWish(
            role=role,
            new_key=absolute_uri(new_key),
            revoke=revoke,
            keys=tuple(key or ()),
            secrets=Secrets(password_file, _asking()),
        )
        done = _rotate(Home(home_of(home)), asked)
        if done.request is None:
            _tell_done(done, asked.new_key, as_json)
        else:
            _tell_asked(done, save_request(done.request, out), as_json)
    if done.request is not None:
        raise typer.Exit(int(ExitCode.HOLDING))


def _tell_done(done: ChangedKey, new_key: str, as_json: bool) -> None:
    if as_json:
        told = {"role": done.role, "added": done.added, "revoked": done.revoked}
        key_file = None if done.key_file is None else str(done.key_file)
        print_json(told | {"versions": done.versions, "key_file": key_file})
        return
    signed = ", ".join(f"{name} {version}" for name, version in done.versions.items())
    say(f"{done.role} has the key {short(done.added)} and no longer {short(done.revoked)}")
    say(f"Signed: {signed}; snapshot and timestamp. Devices follow with their next refresh")
    say(_next_step(done, new_key))


def _tell_asked(done: ChangedKey, path: Path, as_json: bool) -> None:
    assert done.request is not None
    key_file = None if done.key_file is None else str(done.key_file)
    if as_json:
        told = {"added": done.added, "revoked": done.revoked, "key_file": key_file}
        print_json(request_json(done.request, path) | told)
        return
    for reason in done.unusable:
        say(reason, style="yellow", stream=progress_console)
    tell_request(done.request, path, as_json)
    if key_file is not None and done.role in ONLINE_ROLES:
        say(
            f"The new key waits in {key_file}: leave it there. Start fleet serve again before you merge"
        )
    elif key_file is not None:
        say(f"The new key is {key_file}: keep it away from this machine")
    elif done.role in ONLINE_ROLES:
        say(
            f"Before you merge, name the new key in fleet.toml, [keys] {done.role}, and start fleet serve again"
        )


def _rotate(home: Home, wish: KeyWish) -> ChangedKey:
    config = load_config(home.config)
    with home.locked():
        first = {wish.role: wish.new_key} if wish.new_key else {}
        online = online_keys(home, config.keys, first)
        if online.secrets.file is None:
            online = replace(online, secrets=wish.secrets)
        repository = Repository(home.path, online=online)
        return change_key(home.path, repository, wish, time.time())


def _next_step(done: ChangedKey, new_key: str) -> str:
    if done.role in ONLINE_ROLES:
        if new_key:
            return f'Next: in fleet.toml, [keys] {done.role} = "{new_key}"; then fleet serve'
        return f"The new key is {done.key_file}. Next: fleet serve"
    if done.key_file is None:
        return "Next: fleet serve"
    return f"Next: keep {done.key_file} away from this machine; then fleet serve"


def _asking() -> Callable[[str], str]:
    """Ask a person, once for each file; for a PIN each time, since tokens have their own."""
    known: dict[str, str] = {}

    def ask(what: str) -> str:
        if what not in known:
            answer: str = typer.prompt(f"Enter {what}", hide_input=True, err=True)
            if not what.startswith("the password of "):
                return answer
            known[what] = answer
        return known[what]

    return ask
