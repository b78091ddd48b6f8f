"""``fleet key``: who may sign what, and signing with keys that are kept away from the server.

Rules kept here: signing needs neither a fleet folder nor a network, shows what it would sign in words that it has
worked out itself, and asks; a file that travels is replaced as a whole or not at all.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import typer

from fleet.claims.attestation import Attestation
from fleet.cli.key_claims import claims, new_claims
from fleet.cli.key_rotate import rotate
from fleet.cli.output import (
    ExitCode,
    JsonOption,
    errors,
    print_json,
    print_table,
    progress_console,
    say,
)
from fleet.cli.signing_files import request_json, save_request, tell_request
from fleet.errors import ConfigError, FleetError, RequestError
from fleet.home import home_of
from fleet.repository.claims import attested_by, claims_rule
from fleet.repository.generation import read_generation
from fleet.repository.keys import key_files, load_key, read_password
from fleet.repository.overview import KeyView, RoleView, overview
from fleet.repository.request import (
    LIFE_S,
    SigningRequest,
    next_version,
    read_request,
)
from fleet.repository.request_rules import (
    attestations_of,
    check_request,
    merged,
    needs_of,
    needs_words,
    with_signature,
)
from fleet.repository.roles import ONLINE_ROLES
from fleet.repository.words import day

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Roles and their keys: show, sign on request, add, rotate."
)

app.command()(rotate)
app.command("new-claims")(new_claims)
app.command()(claims)

_ROOT_MAX_BYTES: Final = 1024 * 1024

_Out = typer.Option(None, "--out", metavar="FILE", help="Where to write the request.")
_Server = typer.Option(
    "",
    "--server",
    help="Address of the fleet manager; by default $MUSTER_SERVER, else the one that runs in $MUSTER_HOME or "
    "./muster-fleet, else that folder itself.",
    show_default=False,
)
_PasswordFile = typer.Option(
    None, "--password-file", metavar="FILE", help="File with the password of encrypted keys."
)


@app.command()
def show(
    home: Path | None = typer.Option(
        None, "--home", help="Fleet folder; by default $MUSTER_HOME, else ./muster-fleet."
    ),
    as_json: bool = JsonOption,
) -> None:
    """Show every role: keys and where they are, threshold, expiry. Exit code 4: something is to be signed again."""
    from fleet.repository.create import metadata_folder

    with errors(as_json):
        place = home_of(home)
        views = overview(read_generation(metadata_folder(place)), key_files(place), time.time())
        if as_json:
            print_json({"roles": [_role_json(view) for view in views]})
        else:
            print_table(
                "Roles",
                ("role", "version", "needed", "keys", "expires", "days left", "to do"),
                [_role_row(view) for view in views],
                whole=("role",),
            )
    if any(view.is_due for view in views):
        raise typer.Exit(int(ExitCode.HOLDING))


@app.command()
def request(
    role: str = typer.Argument(metavar="ROLE", help="root, targets, emergency or a release role."),
    out: Path | None = _Out,
    server: str = _Server,
    as_json: bool = JsonOption,
) -> None:
    """Ask for a role to be signed again as it is, for as long as its signatures hold: a file for the holders."""
    with errors(as_json):
        from fleet.cli.roles_source import published_roles

        if role in ONLINE_ROLES:
            raise RequestError(
                f"{role} is signed by `fleet serve` itself: nobody needs to be asked"
            )
        now_s = float(int(time.time()))
        with published_roles(server) as roles:
            chain = roles.chain(role)
        following = next_version(role, chain.base, now_s)
        made = SigningRequest(role, following, chain, now_s, now_s + LIFE_S)
        tell_request(made, save_request(made, out), as_json)


@app.command()
def sign(  # noqa: PLR0913, PLR0917 -- each parameter is an option
    file: Path = typer.Argument(metavar="FILE", help="A signing request."),
    key: Path = typer.Option(..., "--key", metavar="PATH", help="The private key to sign with."),
    password_file: Path | None = _PasswordFile,
    root: Path | None = typer.Option(
        None,
        "--root",
        metavar="FILE",
        help="The fleet's root.json that you have kept: refuse what another fleet asks.",
    ),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    out: Path | None = typer.Option(
        None, "--out", metavar="FILE", help="Where to write the signed request; by default FILE."
    ),
    as_json: bool = JsonOption,
) -> None:
    """Show what a signing request changes and sign it. Needs no fleet folder and no network."""
    with errors(as_json):
        asked = read_request(file)
        check_request(asked, time.time(), _root_bytes(root))
        signer = load_key(key, None if password_file is None else read_password(password_file))
        signed = with_signature(asked, signer)
        is_new = signed is not asked
        if is_new and not yes:
            if as_json:
                raise ConfigError("--json asks nobody: say --yes, once you have read the request")
            _describe(asked, has_root=root is not None)
            if not typer.confirm(f"Sign this with {key}?", default=False):
                say("nothing was signed")
                raise typer.Exit(int(ExitCode.FAILED))
        path = save_request(signed, out or file)
        if as_json:
            print_json(request_json(signed, path) | {"changed": is_new})
            return
        say(f"{'Signed' if is_new else 'Was signed before with this key'}: {path}", style="bold")
        say(needs_words(needs_of(signed)))
        say(f"Next: send it back; there, fleet key merge {path.name}")


@app.command()
def merge(
    files: list[Path] = typer.Argument(metavar="FILE...", help="Copies of one signing request."),
    out: Path | None = typer.Option(
        None,
        "--out",
        metavar="FILE",
        help="Where to write the merged request while signatures are missing; by default the first FILE.",
    ),
    server: str = _Server,
    as_json: bool = JsonOption,
) -> None:
    """Put the signatures of several copies together; publish once there are enough. Exit code 4: not yet."""
    with errors(as_json):
        requests = [_checked(path) for path in files]
        whole = merged(requests)
        needs = needs_of(whole)
        path: Path | None = None
        if any(need.left for need in needs):
            path = save_request(whole, out or files[0])
        changed = path is None and _published(whole, server)
        if as_json:
            body = {"published": path is None, "changed": changed}
            print_json(request_json(whole, path) | body)
        elif path is not None:
            say(f"Not published yet: {needs_words(needs)}. Merged into {path}")
        else:
            before = "Published" if changed else "Was published before:"
            say(f"{before} {whole.role} version {whole.version}", style="bold")
            for bundle in sorted(whole.manifests):
                say(f"Next: fleet rollout start {bundle}")
    if path is not None:
        raise typer.Exit(int(ExitCode.HOLDING))


@app.command("add-class")
def add_class(
    device_class: str = typer.Argument(metavar="CLASS", help="The new device class."),
    out: Path | None = _Out,
    password_file: Path | None = _PasswordFile,
    server: str = _Server,
    as_json: bool = JsonOption,
) -> None:
    """Make the release keys of a new device class, and ask the targets keys to let them speak for it."""
    with errors(as_json):
        from fleet.cli.roles_source import published_roles
        from fleet.repository.classes import request_class
        from fleet.repository.keys import offline_folder

        password = None if password_file is None else read_password(password_file)
        home = home_of(None)
        with published_roles(server) as roles:
            made = request_class(home, device_class, roles.chain("targets"), time.time(), password)
        tell_request(made, save_request(made, out), as_json)
        if not as_json:
            say(f"The new keys are in {offline_folder(home)}: move each to its holder's medium")


# --- requests as files ----------------------------------------------------------------------------


def _checked(path: Path) -> SigningRequest:
    request = read_request(path)
    try:
        check_request(request, time.time())
    except FleetError as error:
        raise type(error)(f"{path}: {error}") from error
    return request


def _published(request: SigningRequest, server: str) -> bool:
    from fleet.cli.roles_source import hand_in, published_roles

    with published_roles(server) as roles:
        return hand_in(roles, request)


def _root_bytes(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return file.read(_ROOT_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the root {path}: {error.strerror or error}") from error


def _describe(request: SigningRequest, *, has_root: bool) -> None:
    fleet = request.chain.fleet
    say(f"Fleet {fleet} asks for a signature as {request.role}. What it changes:", style="bold")
    for line in request.says:
        say(f"  {line}")
    attested = attestations_of(request)
    for path, raw in sorted(request.manifests.items()):
        _describe_bundle(path, raw)
        _describe_claims(request, path, attested.get(path, ()))
    say(f"So far: {needs_words(needs_of(request))}")
    if not has_root:
        text = "The request was checked by the root inside it alone: give the one you have kept with --root"
        say(text, style="yellow", stream=progress_console)


def _describe_bundle(path: str, raw: bytes) -> None:
    from agent.bundle import parse_manifest

    manifest = parse_manifest(raw)
    print_table(
        f"Files of {path}",
        ("file", "bytes", "sha256"),
        [(one.name, one.size, one.sha256) for one in manifest.files],
    )


def _describe_claims(request: SigningRequest, path: str, held: Sequence[Attestation]) -> None:
    rule = claims_rule(request.chain.targets.signed)
    for one in held:
        say(f"  {path} is attested: {attested_by(rule, one)}")
    if not held:
        say(f"  {path}: nobody attests that it passed its checks", style="yellow")


# --- roles ----------------------------------------------------------------------------------------


def _role_row(view: RoleView) -> Sequence[object]:
    return (
        view.role,
        view.version,
        f"{view.threshold} of {len(view.keys)}",
        "\n".join(f"{key.name} {key.keyid[:12]} {_where(key)}" for key in view.keys),
        _day(view.expires_s),
        f"{view.days_left:.1f}",
        view.to_do,
    )


def _day(when_s: float) -> str:
    from datetime import UTC, datetime

    return day(datetime.fromtimestamp(when_s, tz=UTC))


def _where(key: KeyView) -> str:
    if key.path is None:
        return "not here"
    return f"here ({key.note})" if key.note else "here"


def _role_json(view: RoleView) -> dict[str, Any]:
    return {
        "role": view.role,
        "version": view.version,
        "threshold": view.threshold,
        "keys": [
            {"name": key.name, "id": key.keyid, "where": _where(key), "path": key.path}
            for key in view.keys
        ],
        "expires_s": view.expires_s,
        "days_left": round(view.days_left, 2),
        "signed_by_server": view.is_online,
        "due": view.is_due,
        "to_do": view.to_do,
    }
