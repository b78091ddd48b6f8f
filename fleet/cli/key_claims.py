"""``fleet key new-claims`` and ``claims``: the key that speaks for bundles, and whose word the fleet asks for.

Rules kept here: the rule stands in the targets role, so changing it is a request to the targets keys like any other.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from fleet.cli.output import ExitCode, JsonOption, errors, print_json, say
from fleet.cli.signing_files import request_json, save_request, tell_request
from fleet.errors import NotFoundError, RequestError
from fleet.home import home_of
from fleet.repository.claims import CLAIMS_FIELD, ClaimsRule, claims_rule
from fleet.repository.keys import (
    create_claims_key,
    key_name,
    key_path,
    load_claims_public_key,
    load_key,
    named_public_key,
    read_password,
)
from fleet.repository.request import LIFE_S, Chain, SigningRequest, next_version
from fleet.repository.request_rules import needs_of, with_signature

__all__ = ["claims", "new_claims", "public_name"]

_PUBLIC = ".pub.pem"


def public_name(key: Path) -> Path:
    """Where the public half of a key for claims lies: beside it, ``NAME.pub.pem``."""
    return key.with_name(key.name.removesuffix(".pem") + _PUBLIC)


def new_claims(
    path: Path = typer.Argument(metavar="PATH", help="Where to put the key, for example ci.pem."),
    password_file: Path | None = typer.Option(
        None, "--password-file", metavar="FILE", help="Encrypt it with the password in this file."
    ),
    as_json: bool = JsonOption,
) -> None:
    """Make a key for claims about bundles (EC P-256): it signs model.sig and attestations, and no role."""
    with errors(as_json):
        password = None if password_file is None else read_password(password_file)
        public = public_name(path)
        made = create_claims_key(path, public, password)
        if as_json:
            keyid = made.public_key.keyid
            print_json({"key": str(path), "public": str(public), "keyid": keyid})
            return
        say(f"Made {path}: keep it where bundles are built and checked", style="bold")
        say(f"and {public}: give it to whoever is to check them")
        say(f"Next, where the fleet is: fleet key claims --trust {public.name}")


def claims(  # noqa: PLR0913, PLR0917 -- each parameter is an option
    trust: list[Path] = typer.Option(
        [], "--trust", metavar="FILE", help="Believe attestations of this public key; repeatable."
    ),
    revoke: list[str] = typer.Option(
        [],
        "--revoke",
        metavar="KEYID",
        help="Believe this key no longer, by the beginning of its id or its name; repeatable.",
    ),
    required: bool | None = typer.Option(
        None, "--required/--optional", help="Whether a new bundle needs an attestation."
    ),
    key: list[Path] = typer.Option(
        [],
        "--key",
        metavar="PATH",
        help="A targets key; repeatable. By default keys/targets.pem of the fleet folder, where there is one.",
    ),
    password_file: Path | None = typer.Option(
        None, "--password-file", metavar="FILE", help="File with the password of encrypted keys."
    ),
    out: Path | None = typer.Option(
        None, "--out", metavar="FILE", help="Where to write the signing request, if one is needed."
    ),
    server: str = typer.Option(
        "",
        "--server",
        help="Address of the fleet manager; by default $MUSTER_SERVER, else the one that runs in $MUSTER_HOME or "
        "./muster-fleet, else that folder itself.",
        show_default=False,
    ),
    as_json: bool = JsonOption,
) -> None:
    """Show or change whose attestations are believed, and whether a new bundle needs one.

    Exit code 4: the targets keys that must sign are not here; a signing request says so.
    """
    with errors(as_json):
        from fleet.cli.roles_source import hand_in, published_roles

        with published_roles(server) as roles:
            chain = roles.chain("targets")
            before = claims_rule(chain.base.signed)
            after = _changed(before, trust, revoke, required)
            if after == before:
                _tell(before, as_json, changed=False)
                return
            asked = _request(chain, after, time.time())
            password = None if password_file is None else read_password(password_file)
            for path in key or _local_targets_key():
                asked = with_signature(asked, load_key(path, password))
            if not any(need.left for need in needs_of(asked)):
                hand_in(roles, asked)
                _tell(after, as_json, changed=True)
                return
        path = save_request(asked, out)
        if as_json:
            print_json(request_json(asked, path))
        else:
            tell_request(asked, path, as_json)
        raise typer.Exit(int(ExitCode.HOLDING))


def _changed(
    rule: ClaimsRule, trust: Sequence[Path], revoke: Sequence[str], required: bool | None
) -> ClaimsRule:
    keys = {one.keyid: one for one in rule.keys}
    for wanted in revoke:
        found = [k for k, one in keys.items() if k.startswith(wanted) or key_name(one) == wanted]
        if not wanted or len(found) != 1:
            known = ", ".join(f"{key_name(one)} {k[:12]}" for k, one in keys.items()) or "none"
            raise NotFoundError(
                f"{wanted!r} is not one of the attestation keys that are believed: {known}"
            )
        del keys[found[0]]
    for path in trust:
        public = named_public_key(load_claims_public_key(path), path.name.removesuffix(_PUBLIC))
        keys.setdefault(public.keyid, public)
    changed = replace(
        rule, keys=tuple(keys.values()), required=rule.required if required is None else required
    )
    if changed.required and not changed.keys:
        raise RequestError(
            "no bundle could be published: attestations would be needed and nobody's believed. Add --trust FILE, or "
            "say --optional"
        )
    return changed


def _request(chain: Chain, rule: ClaimsRule, now_s: float) -> SigningRequest:
    created_s = float(int(now_s))
    following = next_version("targets", chain.base, created_s)
    following.signed.unrecognized_fields[CLAIMS_FIELD] = rule.to_json()
    return SigningRequest("targets", following, chain, created_s, created_s + LIFE_S)


def _local_targets_key() -> list[Path]:
    local = key_path(home_of(None), "targets")
    return [local] if local.is_file() else []


def _tell(rule: ClaimsRule, as_json: bool, *, changed: bool) -> None:
    if as_json:
        keys: list[dict[str, Any]] = [{"name": key_name(k), "keyid": k.keyid} for k in rule.keys]
        print_json({"required": rule.required, "keys": keys, "changed": changed})
        return
    needs = "needs an attestation" if rule.required else "needs no attestation"
    say(f"A new bundle {needs} of its checks", style="bold")
    for one in rule.keys:
        say(f"  believed: {key_name(one)} {one.keyid[:12]}")
    if not rule.keys:
        say("  nobody's attestation is believed: add a key with --trust FILE")
