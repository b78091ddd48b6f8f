"""``fleet bundle block`` and its kin: what the emergency role says of bundles, with its keys here or elsewhere.

Rules kept here: the role speaks of a bundle by the digest of its manifest, which is looked up in signed metadata and
never taken from a table; keys that are here and are enough sign at once, else a signing request travels.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer
from tuf.api.metadata import Metadata

from agent.trust.release import BUNDLE_PREFIX
from fleet.cli.output import ExitCode, JsonOption, errors, print_json, print_table, say
from fleet.cli.roles_source import Roles, hand_in, published_roles
from fleet.cli.signing_files import request_json, save_request, tell_request
from fleet.errors import ConfigError, NotFoundError, RequestError
from fleet.home import home_of
from fleet.repository.emergency import EmergencyChange, next_emergency, read_entry
from fleet.repository.generation import delegated_roles, role_for
from fleet.repository.keys import key_path, load_key, read_password
from fleet.repository.release import read_entries
from fleet.repository.request import LIFE_S, SigningRequest
from fleet.repository.request_rules import needs_of, with_signature
from fleet.repository.roles import EMERGENCY, is_release_role

__all__ = ["add_commands"]

_DIGEST_CHARS: Final = 64
_HEX: Final = frozenset("0123456789abcdef")

_Bundle = typer.Argument(
    metavar="BUNDLE", help="bundles/CLASS/MODEL-VERSION, or the sha256 of a manifest."
)
_Server = typer.Option(
    "",
    "--server",
    help="Address of the fleet manager; by default $MUSTER_SERVER, else the one that runs in $MUSTER_HOME or "
    "./muster-fleet, else that folder itself.",
    show_default=False,
)
_Key = typer.Option(
    [],
    "--key",
    metavar="PATH",
    help="A key of the emergency role; repeatable. By default keys/emergency.pem of the fleet folder; where the keys "
    "do not suffice, a signing request is written.",
)
_PasswordFile = typer.Option(
    None, "--password-file", metavar="FILE", help="File with the password of encrypted keys."
)
_Out = typer.Option(
    None, "--out", metavar="FILE", help="Where a signing request is written, if one is needed."
)


def block(  # noqa: PLR0913, PLR0917 -- each parameter is an option
    bundle: str = _Bundle,
    reason: str = typer.Option(..., "--reason", help="Why; every device that leaves it says so."),
    key: list[Path] = _Key,
    password_file: Path | None = _PasswordFile,
    out: Path | None = _Out,
    server: str = _Server,
    as_json: bool = JsonOption,
) -> None:
    """Block a bundle: no device installs it, and those that have it leave it. Exit code 4: it is to be signed."""
    with errors(as_json), published_roles(server) as roles:
        if not reason.strip():
            raise RequestError("--reason says why the bundle is blocked: it cannot be empty")
        digest = _digest(roles, bundle)
        change = EmergencyChange(block={digest: reason})
        _say(roles, change, _keys(key, password_file), out, as_json)


def unblock(
    bundle: str = _Bundle,
    key: list[Path] = _Key,
    password_file: Path | None = _PasswordFile,
    out: Path | None = _Out,
    server: str = _Server,
    as_json: bool = JsonOption,
) -> None:
    """Take a block back: devices may have the bundle again. Exit code 4: it is to be signed."""
    with errors(as_json), published_roles(server) as roles:
        change = EmergencyChange(unblock=(_digest(roles, bundle),))
        _say(roles, change, _keys(key, password_file), out, as_json)


def lift_limits(  # noqa: PLR0913, PLR0917 -- each parameter is an option
    bundle: str = _Bundle,
    back: bool = typer.Option(False, "--back", help="Let the speed limits hold again."),
    key: list[Path] = _Key,
    password_file: Path | None = _PasswordFile,
    out: Path | None = _Out,
    server: str = _Server,
    as_json: bool = JsonOption,
) -> None:
    """Lift the speed limits of a bundle's release, until the role expires. Exit code 4: it is to be signed."""
    with errors(as_json), published_roles(server) as roles:
        digest = _digest(roles, bundle)
        change = EmergencyChange(unlift=(digest,)) if back else EmergencyChange(lift=(digest,))
        _say(roles, change, _keys(key, password_file), out, as_json)


def blocked(server: str = _Server, as_json: bool = JsonOption) -> None:
    """Show what the emergency role says: the bundles that are blocked, and the limits that are lifted."""
    with errors(as_json), published_roles(server) as roles:
        base = roles.chain(EMERGENCY).base.signed
        entry, names = read_entry(base), _paths(roles)
        expires_s = base.expires.timestamp()
        lifts = expires_s > time.time()
    if as_json:
        lifted = sorted(entry.lifted)
        body = {"version": base.version, "expires_s": expires_s, "lifts_hold": lifts}
        print_json(body | {"blocked": dict(entry.blocked), "lifted": lifted, "bundles": names})
        return
    held = "limits lifted" if lifts else "limits were lifted; the role has expired"
    rows = [(names.get(one, ""), one, f"blocked: {why}") for one, why in entry.blocked.items()]
    rows += [(names.get(one, ""), one, held) for one in entry.lifted]
    print_table(
        "Emergencies", ("bundle", "manifest", "said"), rows, empty="none", whole=("bundle",)
    )


def add_commands(app: typer.Typer) -> None:
    """Give ``fleet bundle`` these commands."""
    app.command("block")(block)
    app.command("unblock")(unblock)
    app.command("lift-limits")(lift_limits)
    app.command("blocked")(blocked)


# --- what is signed -------------------------------------------------------------------------------


def _keys(
    named: Sequence[Path], password_file: Path | None
) -> tuple[tuple[Path, ...], bytes | None]:
    local = key_path(home_of(None), EMERGENCY)
    keys = tuple(named) or ((local,) if local.is_file() else ())
    for path in keys:
        if not path.is_file():
            raise ConfigError(f"there is no key at {path}: say where it is with --key")
    return keys, None if password_file is None else read_password(password_file)


def _say(
    roles: Roles,
    change: EmergencyChange,
    keys: tuple[tuple[Path, ...], bytes | None],
    out: Path | None,
    as_json: bool,
) -> None:
    """Sign and publish it, or write the request for the signatures that are missing; exit code 4 then."""
    now_s = float(int(time.time()))
    chain = roles.chain(EMERGENCY)
    following = Metadata(next_emergency(chain.base.signed, change, now_s))
    asked = SigningRequest(EMERGENCY, following, chain, now_s, now_s + LIFE_S)
    for path in keys[0]:
        asked = with_signature(asked, load_key(path, keys[1]))
    if any(need.left for need in needs_of(asked)):
        tell_request(asked, save_request(asked, out), as_json)
        raise typer.Exit(int(ExitCode.HOLDING))
    changed = hand_in(roles, asked)
    if as_json:
        print_json(request_json(asked, None) | {"published": True, "changed": changed})
        return
    say(f"Published {EMERGENCY} version {asked.version}:", style="bold")
    for line in asked.says:
        say(f"  {line}")


# --- which bundle ---------------------------------------------------------------------------------


def _digest(roles: Roles, bundle: str) -> str:
    """The digest of a manifest.

    Raises:
        NotFoundError: no release role names such a bundle. RequestError: it is neither digest nor path.
    """
    if len(bundle) == _DIGEST_CHARS and set(bundle) <= _HEX:
        return bundle
    if not bundle.startswith(BUNDLE_PREFIX):
        raise RequestError(
            f"{bundle[:200]!r} is neither the sha256 of a manifest nor a bundle as `fleet bundle list` shows it"
        )
    role = role_for(roles.chain("targets").targets.signed, bundle)
    target = roles.chain(role).base.signed.targets.get(bundle) if role else None
    if target is None:
        raise NotFoundError(
            f"no release role names {bundle}: `fleet bundle list` shows what is published; what is not "
            "released is blocked by the sha256 of its manifest"
        )
    return str(target.hashes["sha256"])


def _paths(roles: Roles) -> dict[str, str]:
    """Every released bundle by the digest of its manifest."""
    found: dict[str, str] = {}
    for role in delegated_roles(roles.chain("targets").targets.signed):
        if is_release_role(role):
            entries = read_entries(roles.chain(role).base.signed)
            found |= {one.sha256: path for path, one in entries.items()}
    return found
