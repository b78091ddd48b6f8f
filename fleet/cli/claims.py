"""``fleet bundle attest`` and ``show``, and what other bundle commands say of a bundle's claims."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from agent.bundle import Manifest, manifest_sha256
from agent.bundle.folder import open_bundle_file, read_bundle
from fleet.artifacts.card import BOM_NAME
from fleet.claims.attestation import (
    ATTESTATION_ENDING,
    MAX_ATTESTATION_BYTES,
    Attestation,
    Result,
    attestation_digest,
    make_attestation,
    read_attestation,
    verify_attestation,
)
from fleet.claims.model_signature import (
    MAX_SIGNATURE_BYTES,
    SIGNATURE_NAME,
    signature_hint,
    verify_files,
)
from fleet.cli.client import FleetClient, ServerOption
from fleet.cli.output import ExitCode, JsonOption, errors, print_json, print_table, say
from fleet.cli.roles_source import ServerRoles
from fleet.cli.rollout_view import when
from fleet.cli.speed_limits import limits_words
from fleet.errors import ConfigError, NotFoundError, RefusedError, RequestError
from fleet.home import home_of
from fleet.repository.claims import ClaimsRule, attested_by, claims_rule
from fleet.repository.files import write_durable
from fleet.repository.keys import (
    CLAIMS,
    key_path,
    load_claims_public_key,
    load_key,
    named_public_key,
    read_password,
)

__all__ = [
    "attest",
    "attestation_file",
    "claims_key",
    "read_attestations",
    "show",
    "tell_claims",
    "verify_claims",
]


def claims_key(given: Path | None) -> Path | None:
    """The private key for claims: the one that is named, else the fleet folder's; None where there is none.

    Raises:
        ConfigError: the one that is named is not there.
    """
    if given is not None and not given.is_file():
        raise ConfigError(f"there is no key at {given}; `fleet key new-claims {given}` makes one")
    local = key_path(home_of(None), CLAIMS)
    return given or (local if local.is_file() else None)


def attestation_file(folder: Path) -> Path:
    """Where the attestation of a bundle lies by default: beside its folder."""
    whole = folder.resolve()
    return whole.with_name(whole.name + ATTESTATION_ENDING)


def read_attestations(folder: Path, given: Sequence[Path]) -> tuple[bytes, ...]:
    """The attestations that are named, else the one beside the folder; each once, as bytes of bounded number.

    Raises:
        RequestError: a file cannot be read. RefusedError: one is too large.
    """
    beside = attestation_file(folder)
    paths = given or ([beside] if beside.is_file() else [])
    found = {attestation_digest(raw): raw for raw in map(_read, paths)}
    return tuple(found[digest] for digest in sorted(found))


def attest(
    folder: Path = typer.Argument(metavar="DIR", help="A bundle."),
    key: Path | None = typer.Option(
        None,
        "--key",
        metavar="PATH",
        help="The key to attest with; by default keys/claims.pem of the fleet folder.",
    ),
    password_file: Path | None = typer.Option(
        None, "--password-file", metavar="FILE", help="File with the password of an encrypted key."
    ),
    out: Path | None = typer.Option(
        None,
        "--out",
        metavar="FILE",
        help="Where to write it; by default DIR.intoto.json, beside the folder.",
    ),
    as_json: bool = JsonOption,
) -> None:
    """Run the checks of publishing on a bundle and sign how they ended: an in-toto test-result attestation.

    It is written whatever they say. Exit code 3: a check failed.
    """
    with errors(as_json):
        from fleet.checks.publishing import check_bundle

        path = claims_key(key)
        if path is None:
            raise ConfigError(
                "there is no key to attest with: say where it is with --key; `fleet key new-claims` makes one"
            )
        signer = load_key(path, None if password_file is None else read_password(password_file))
        manifest, raw = read_bundle(folder)
        checked = check_bundle(folder, manifest_sha256(raw))
        content = make_attestation(manifest.path, manifest_sha256(raw), checked, signer)
        target = out or attestation_file(folder)
        write_durable(target, content)
        said = read_attestation(content)
        if as_json:
            print_json(_json(said, content) | {"bundle": manifest.path, "path": str(target)})
        else:
            say(f"Attested {manifest.path}: {said.result}", style="bold")
            for word, names in _names(said):
                say(f"  {word}: {', '.join(names)}")
            say(f"Wrote {target}, signed by key {said.keyids[0][:12]}")
            if said.result == Result.PASSED:
                say(f"Next: fleet bundle publish {folder}")
    if said.result == Result.FAILED:
        raise typer.Exit(int(ExitCode.REFUSED))


def show(
    bundle: str = typer.Argument(
        metavar="BUNDLE", help="A published bundle: bundles/CLASS/MODEL-VERSION."
    ),
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Show a published bundle and which claims it carries, each attestation checked by the fleet's rule."""
    with errors(as_json), FleetClient(server) as client:
        rows = [row for row in client.get_json("/v1/bundles")["bundles"] if row["path"] == bundle]
        if not rows:
            raise NotFoundError(
                f"no bundle {bundle[:200]} is published: `fleet bundle list` names them"
            )
        row: dict[str, Any] = rows[0]
        rule = claims_rule(ServerRoles(client).chain("targets").targets.signed)
        shown = []
        for digest in row["attestations"]:
            content = client.get_bytes(f"/v1/attestations/{digest}")
            held = verify_attestation(content, rule.keys, row["manifest_sha256"])
            shown.append((digest, held, content))
        if as_json:
            print_json(row | {"attestations": [_json(held, content) for _, held, content in shown]})
            return
        say(row["path"], style="bold")
        say(f"release {row['release']}; manifest sha256 {row['manifest_sha256']}")
        if row["limits"]:
            since = when(row["signed_at_s"])
            say(f"speed limits: {limits_words(row['limits'])}, since it was signed ({since})")
        for digest, held, _ in shown:
            say(f"attestation {digest[:12]}: {attested_by(rule, held)}")
        if not shown:
            asked = "needed for new bundles now" if rule.required else "not needed in this fleet"
            say(f"no attestation of its checks ({asked})")


# --- the claims of a folder -----------------------------------------------------------------------


def tell_claims(folder: Path, manifest: Manifest, raw: bytes, as_json: bool) -> dict[str, Any]:
    """Say which claims a bundle carries, nobody's signature checked; the same for programs."""
    signed = _signature(folder, manifest)
    beside = read_attestations(folder, ())
    said = [read_attestation(one) for one in beside]
    bom = any(file.name == BOM_NAME for file in manifest.files)
    hint = "" if signed is None else signature_hint(signed)
    if not as_json:
        rows = [
            (SIGNATURE_NAME, f"of key {hint[:12]}" if hint else "none"),
            (BOM_NAME, "CycloneDX 1.6" if bom else "none"),
        ]
        for one in said:
            about = manifest_sha256(raw) in {digest for _, digest in one.subjects}
            rows.append(("attestation", str(one.result) if about else "of ANOTHER manifest"))
        if not said:
            rows.append(("attestation", "none beside the folder"))
        print_table("Claims, not checked", ("claim", "says"), rows)
    return {
        "model_sig": hint,
        "bom": bom,
        "attestations": [_json(one, one_raw) for one, one_raw in zip(said, beside, strict=True)],
    }


def verify_claims(folder: Path, manifest: Manifest, raw: bytes, public: Path) -> list[str]:
    """Check ``model.sig``, and the attestation beside the folder where there is one, by a public key; what held.

    Raises:
        ConfigError: the key cannot be read. ClaimError: a claim does not hold.
        RefusedError: there is no ``model.sig``.
    """
    key = load_claims_public_key(public)
    signed = _signature(folder, manifest)
    if signed is None:
        raise RefusedError(
            f"{manifest.path} has no {SIGNATURE_NAME}: build it with --claims-key, or verify without"
        )
    verify_files(signed, {file.name: file.sha256 for file in manifest.files}, key)
    held = [f"{SIGNATURE_NAME} is by the key in {public}"]
    rule = ClaimsRule((named_public_key(key, public.name.removesuffix(".pub.pem")),))
    for one in read_attestations(folder, ()):
        said = verify_attestation(one, rule.keys, manifest_sha256(raw))
        held.append(f"attestation: {attested_by(rule, said)}")
    return held


def _signature(folder: Path, manifest: Manifest) -> bytes | None:
    if all(file.name != SIGNATURE_NAME for file in manifest.files):
        return None
    with open_bundle_file(folder, SIGNATURE_NAME) as file:
        return file.read(MAX_SIGNATURE_BYTES + 1)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_ATTESTATION_BYTES + 1)
    except OSError as error:
        raise RequestError(
            f"cannot read the attestation {path}: {error.strerror or error}"
        ) from error
    if len(raw) > MAX_ATTESTATION_BYTES:
        raise RefusedError(
            f"{path} is larger than the {MAX_ATTESTATION_BYTES} bytes that an attestation may have"
        )
    return raw


def _names(said: Attestation) -> list[tuple[str, tuple[str, ...]]]:
    checked = said.checked
    named = [("passed", checked.passed), ("warned", checked.warned), ("FAILED", checked.failed)]
    return [(word, names) for word, names in named if names]


def _json(said: Attestation, content: bytes) -> dict[str, Any]:
    return {
        "sha256": attestation_digest(content),
        "result": str(said.result),
        "passed": list(said.checked.passed),
        "warned": list(said.checked.warned),
        "failed": list(said.checked.failed),
        "ran_on": dict(said.checked.ran_on),
        "keyids": list(said.keyids),
    }
