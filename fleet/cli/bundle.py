"""``fleet bundle``: build a bundle from a project, look at it, try it, publish it."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from agent.bundle import Manifest, TensorSpec, manifest_sha256
from agent.bundle.folder import read_bundle, verify_folder
from agent.errors import BundleError
from agent.runtime import run_trial_blocking
from agent.runtime.onnx_scan import scan_bundle
from agent.runtime.verdict import clean_text
from fleet.artifacts.publish import PieceProgress
from fleet.claims.model_signature import SIGNATURE_NAME
from fleet.cli.claims import (
    attest,
    claims_key,
    read_attestations,
    show,
    tell_claims,
    verify_claims,
)
from fleet.cli.client import FleetClient, ServerOption
from fleet.cli.emergency import add_commands
from fleet.cli.output import (
    ExitCode,
    JsonOption,
    errors,
    print_json,
    print_table,
    progress_console,
    say,
)
from fleet.cli.publishing import Wanted, publish_or_ask
from fleet.cli.rollout_view import when
from fleet.cli.signing_files import save_request, tell_request
from fleet.cli.speed_limits import parse_limits
from fleet.errors import ConfigError, RefusedError
from fleet.home import home_of
from fleet.repository.keys import key_path, load_claims_key, read_password
from fleet.repository.request import SigningRequest
from fleet.repository.roles import SIMPLE_RELEASE

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Build, inspect, verify, publish, list and block bundles."
)

_PasswordFile = typer.Option(
    None, "--password-file", metavar="FILE", help="File with the password of encrypted keys."
)
_Folder = typer.Argument(metavar="DIR", help="A bundle: the folder that `fleet bundle build` made.")


@app.command()
def build(
    project: Path = typer.Argument(metavar="PROJECT", help="The folder that holds muster.toml."),
    out: Path | None = typer.Option(
        None, "--out", metavar="DIR", help="Folder to make; by default ./bundles/MODEL-VERSION."
    ),
    record_golden: bool = typer.Option(
        False,
        "--record-golden",
        help="Golden cases without outputs expect from now on what the pipeline answers now.",
    ),
    key: Path | None = typer.Option(
        None,
        "--claims-key",
        metavar="PATH",
        help="Sign model.sig with this EC P-256 key; by default keys/claims.pem of the fleet folder, if it is there.",
    ),
    password_file: Path | None = _PasswordFile,
    as_json: bool = JsonOption,
) -> None:
    """Check a project, pack it into a bundle and try it as a device would."""
    with errors(as_json):
        from fleet.artifacts.build import build_bundle
        from fleet.artifacts.project import read_project

        if out is None:
            read = read_project(project)
            out = Path("bundles") / f"{read.model}-{read.version}"
        place = claims_key(key)
        password = None if password_file is None else read_password(password_file)
        with _status("checking, packing and trying", as_json):
            signs = None if place is None else load_claims_key(place, password)
            result = build_bundle(
                project, out, now_s=_now_s(), record_golden=record_golden, claims_key=signs
            )
        if as_json:
            print_json(
                {
                    "path": str(result.path),
                    "bundle": result.manifest.path,
                    "manifest_sha256": result.manifest_sha256,
                    "size_bytes": result.manifest.size_bytes,
                    "pieces": len(result.manifest.pieces()),
                    "golden_cases": len(result.manifest.golden),
                    "warnings": list(result.warnings),
                    "measures": dict(result.measures),
                    "claims_key": None if place is None else str(place),
                }
            )
            return
        for warning in result.warnings:
            say(f"warning: {warning}", style="yellow", stream=progress_console)
        say(
            f"Built {result.manifest.path} in {result.path}: {_size(result.manifest.size_bytes)}, "
            f"{_count(len(result.manifest.pieces()), 'piece')}, "
            f"{_count(len(result.manifest.golden), 'golden case')} passed"
        )
        say(_measured(result.measures))
        say(f"sha256 {result.manifest_sha256}")
        if place is not None:
            say(f"{SIGNATURE_NAME} signed with {place}")
        say(f"Next: fleet bundle publish {result.path}")


@app.command()
def inspect(folder: Path = _Folder, as_json: bool = JsonOption) -> None:
    """Show what a bundle holds and demands, without running it."""
    with errors(as_json):
        manifest, raw = read_bundle(folder)
        refusal = _refusal(folder, manifest)
        if as_json:
            body = asdict(manifest)
            body["refusal"] = refusal
            body.update(path=manifest.path, manifest_sha256=manifest_sha256(raw))
            body["size_bytes"] = manifest.size_bytes
            print_json(body | {"claims": tell_claims(folder, manifest, raw, as_json=True)})
            return
        say(manifest.path, style="bold")
        say(f"sha256 {manifest_sha256(raw)}")
        _show(manifest)
        tell_claims(folder, manifest, raw, as_json=False)
        if refusal:
            say(f"Every device refuses it: {refusal}", style="red")


@app.command()
def verify(
    folder: Path = _Folder,
    public: Path | None = typer.Option(
        None,
        "--claims-key",
        metavar="FILE",
        help="Check model.sig, and the attestation beside the folder, by this public key too.",
    ),
    as_json: bool = JsonOption,
) -> None:
    """Hash every file of a bundle, then try it as a device would, golden cases included."""
    with errors(as_json):
        manifest = verify_folder(folder)
        _, raw = read_bundle(folder)
        held = [] if public is None else verify_claims(folder, manifest, raw, public)
        with _status("trying", as_json):
            report = run_trial_blocking(folder)
        if not report.ok:
            raise RefusedError(
                f"{manifest.path} did not pass the trial that devices run "
                f"({report.reason_code}): {report.reason}"
            )
        if as_json:
            body = {"bundle": manifest.path, "ok": True, "measures": dict(report.measures)}
            print_json(body | {"claims": held})
            return
        say(
            f"{manifest.path}: {_count(len(manifest.files), 'file')} with the right digests, "
            f"{_count(len(manifest.golden), 'golden case')} passed"
        )
        say(_measured(report.measures))
        for claim in held:
            say(claim)


app.command()(attest)
app.command()(show)
add_commands(app)


@app.command()
def publish(  # noqa: PLR0913, PLR0917 -- each parameter is an option
    folder: Path = _Folder,
    server: str = ServerOption,
    key: list[Path] = typer.Option(
        [],
        "--key",
        help="A release key; repeatable. By default keys/release.pem of the fleet folder; where there is none, a "
        "signing request is written.",
    ),
    password_file: Path | None = _PasswordFile,
    attestation: list[Path] = typer.Option(
        [],
        "--attestation",
        metavar="FILE",
        help="What attests its checks; repeatable. By default DIR.intoto.json, where `fleet bundle attest` put it.",
    ),
    out: Path | None = typer.Option(
        None, "--out", metavar="FILE", help="Where a signing request is written, if one is needed."
    ),
    release: int = typer.Option(
        0, "--release", min=0, help="Refuse unless the bundle becomes this release of its model."
    ),
    min_release: int = typer.Option(
        0,
        "--min-release",
        min=0,
        help="From now on devices install no release of the model below this one.",
    ),
    limits: str = typer.Option(
        "",
        "--limits",
        metavar="AFTER:SHARE,...",
        help="How fast it may spread, by the clock of the devices and whatever a rollout says: 0s:1%,4h:10%,1d:100%. "
        "`fleet bundle lift-limits` ends that.",
        show_default=False,
    ),
    as_json: bool = JsonOption,
) -> None:
    """Upload what the fleet manager lacks, sign the bundle's release and hand it in.

    Exit code 4: not published yet, for the keys that must sign are not here; a signing request says so.
    """
    with errors(as_json):
        local = key_path(home_of(None), SIMPLE_RELEASE)
        keys = key or ([local] if local.is_file() else [])
        for path in keys:
            if not path.is_file():
                raise ConfigError(f"there is no release key at {path}: say where it is with --key")
        attested = read_attestations(folder, attestation)
        allowed = parse_limits(limits)
        wanted = Wanted(folder, tuple(keys), time.time(), release, min_release, attested, allowed)
        password = None if password_file is None else read_password(password_file)
        with FleetClient(server) as client, _upload_bar(as_json) as progress:
            done = publish_or_ask(client, wanted, password, progress)
        if isinstance(done, SigningRequest):
            tell_request(done, save_request(done, out), as_json)
            raise typer.Exit(int(ExitCode.HOLDING))
        if as_json:
            print_json(asdict(done))
            return
        said = "Published" if done.changed else "Was published before:"
        say(
            f"{said} {done.path} as release {done.release}; sent {_count(done.sent_pieces, 'piece')}, "
            f"{_size(done.sent_bytes)} of {_size(done.size_bytes)}"
        )
        say(f"Next: fleet rollout start {done.path}")


@app.command(name="list")
def list_bundles(server: str = ServerOption, as_json: bool = JsonOption) -> None:
    """List the published bundles, the newest first."""
    with errors(as_json), FleetClient(server) as client:
        bundles: list[dict[str, Any]] = client.get_json("/v1/bundles")["bundles"]
        if as_json:
            print_json({"bundles": bundles})
            return
        print_table(
            "Bundles",
            ("bundle", "release", "size", "published"),
            [
                (
                    row["path"],
                    row["release"],
                    _size(row["size_bytes"]),
                    when(row["published_s"]),
                )
                for row in bundles
            ],
            empty="none published yet; `fleet bundle publish` publishes one",
        )


# --- what is shown --------------------------------------------------------------------------------


def _refusal(folder: Path, manifest: Manifest) -> str:
    """Why devices refuse its models at sight; empty when they do not."""
    try:
        scan_bundle(folder, manifest)
    except BundleError as error:
        return str(error)
    return ""


def _show(manifest: Manifest) -> None:
    print_table(
        f"Files, {_size(manifest.size_bytes)}",
        ("file", "size", "pieces", "sha256"),
        [(f.name, _size(f.size), len(f.pieces), f.sha256[:12]) for f in manifest.files],
    )
    print_table(
        "Stages",
        ("stage", "file", "takes", "makes"),
        [
            (
                stage.name,
                stage.file,
                ", ".join(_pair(tensor, onnx) for tensor, onnx in stage.inputs),
                ", ".join(_pair(onnx, tensor) for onnx, tensor in stage.outputs),
            )
            for stage in manifest.stages
        ],
    )
    print_table(
        "Contract",
        ("", "tensor", "type", "shape", "range", "labels"),
        [_spec_row("input", spec) for spec in manifest.inputs]
        + [_spec_row("output", spec) for spec in manifest.outputs],
    )
    print_table(
        "Golden cases",
        ("case", "inputs", "outputs"),
        [
            (
                case.name,
                ", ".join(f"{name}{list(tensor.shape)}" for name, tensor in case.inputs),
                ", ".join(f"{out.name} ±({out.atol:g} + {out.rtol:g}·|x|)" for out in case.outputs),
            )
            for case in manifest.golden
        ],
    )
    print_table("Objectives", ("objective", "value"), list(asdict(manifest.objectives).items()))
    if manifest.observe is not None:
        print_table("Observed", ("what", "value"), list(asdict(manifest.observe).items()))
    requires = {
        key: ", ".join(value) if isinstance(value, tuple) else value
        for key, value in asdict(manifest.requirements).items()
    }
    print_table("Requirements", ("of", "value"), [(k, v or "any") for k, v in requires.items()])
    if manifest.parameters:
        print_table("Parameters", ("parameter", "value"), list(manifest.parameters.items()))


def _pair(source: str, target: str) -> str:
    return source if source == target else f"{source} → {target}"


def _spec_row(kind: str, spec: TensorSpec) -> tuple[object, ...]:
    low = "" if spec.minimum is None else f"{spec.minimum:g}"
    high = "" if spec.maximum is None else f"{spec.maximum:g}"
    return (
        kind,
        spec.name,
        spec.dtype,
        " × ".join("any" if size == -1 else str(size) for size in spec.shape) or "scalar",
        f"{low} … {high}" if low or high else "",
        _labels(spec.labels),
    )


def _labels(labels: Sequence[str]) -> str:
    if not labels:
        return ""
    return f"{len(labels)}: {clean_text(', '.join(labels[:3]), 60)}{'…' if len(labels) > 3 else ''}"


def _measured(measures: Any) -> str:
    return (
        f"Measured here: load {measures.get('load_ms', 0):.0f} ms, "
        f"latency {measures.get('latency_ms', 0):.3g} ms, "
        f"peak memory {_size(measures.get('peak_rss_bytes', 0))}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def _now_s() -> int:
    """Now, or $SOURCE_DATE_EPOCH, with which a build can be repeated bit for bit."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return int(time.time())
    if not text.isdecimal() or len(text) > 15:
        raise ConfigError(f"$SOURCE_DATE_EPOCH = {text!r} must be whole seconds since 1970")
    return int(text)


@contextmanager
def _status(doing: str, as_json: bool) -> Iterator[None]:
    """A sign of life on a terminal."""
    if as_json or not progress_console.is_terminal:
        yield
        return
    with progress_console.status(doing):
        yield


@contextmanager
def _upload_bar(as_json: bool) -> Iterator[PieceProgress]:
    """Progress of an upload, on a terminal only."""
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    shown = progress_console.is_terminal and not as_json
    with Progress(*columns, console=progress_console, transient=True, disable=not shown) as bar:
        task = bar.add_task("upload", total=None)

        def update(sent: int, total: int) -> None:
            bar.update(task, completed=sent, total=total)

        yield update
