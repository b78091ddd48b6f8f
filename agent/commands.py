"""The agent's commands. ``run`` is the service; the others look at the same configuration and state from outside.

Rules kept here:
- Parsing and printing only; what a command does lives in its own module and is imported when it is called.
- ``--json`` for machines; exit codes 0 done, 1 failed, 2 usage or configuration, 3 refused by a check.
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import typer

from agent.errors import AgentError, BundleError, ConfigError, TrustError

if TYPE_CHECKING:
    from agent.status import InstalledModel

__all__ = ["app"]

app = typer.Typer(
    name="fleet-agent",
    help="The Muster agent: verifies, tries, swaps, serves and watches models on this device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_DONE: Final = 0
_FAILED: Final = 1
_USAGE: Final = 2
_REFUSED: Final = 3

_ConfigOption = typer.Option(..., "--config", "-c", help="The agent's TOML file.")
_JsonOption = typer.Option(False, "--json", help="Print JSON for machines.")


@contextmanager
def _errors(as_json: bool = False) -> Iterator[None]:
    """An error of ours becomes one message on stderr and its exit code; anything else is a bug and shows."""
    try:
        yield
    except AgentError as error:
        code = _exit_code(error)
        if as_json:
            _print_json({"error": type(error).__name__, "message": str(error), "exit_code": code})
        else:
            _say(f"error: {error}", err=True)
        raise typer.Exit(code) from error


def _exit_code(error: AgentError) -> int:
    if isinstance(error, ConfigError):
        return _USAGE
    return _REFUSED if isinstance(error, BundleError | TrustError) else _FAILED


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def _say(text: str, *, indent: int = 0, err: bool = False) -> None:
    """A sentence: folded between words on a terminal, one line where a program reads it."""
    stream = sys.stderr if err else sys.stdout
    if stream.isatty():
        width = shutil.get_terminal_size().columns
        fold = textwrap.TextWrapper(
            width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
        text = "\n".join(fold.fill(line) for line in text.splitlines())
    typer.echo(text, err=err)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


@app.command()
def run(config: Path = _ConfigOption) -> NoReturn:
    """Run the agent until SIGTERM or SIGINT."""
    from agent import daemon

    raise typer.Exit(daemon.main(["--config", str(config)]))


@app.command()
def enroll(
    config: Path = _ConfigOption,
    server: str = typer.Option(..., "--server", help="HOST:PORT where the fleet manager enrols."),
    token: str = typer.Option(..., "--token", help="From `fleet device token create`."),
    root: Path | None = typer.Option(
        None, "--root", help="The fleet's root.json, to be put where [fleet] root says."
    ),
    wait_s: float = typer.Option(
        3600.0, "--wait", min=1, help="How long to wait to be accepted, seconds."
    ),
    as_json: bool = _JsonOption,
) -> None:
    """Make this device's keys and get its certificate with a token. Run again, it goes on where it stopped."""
    with _errors(as_json):
        from agent.config import load_config
        from agent.enroll import Wish, enroll_device

        done = enroll_device(
            load_config(config),
            Wish(server, token, root, wait_s),
            lambda text: _say(text, err=True),
        )
    certificate = done.certificate
    if as_json:
        said = {"name": certificate.name.uri, "serial": certificate.serial}
        _print_json(said | {"not_after_s": certificate.not_after_s, "not_yet_used": done.not_yet})
        return
    until = datetime.fromtimestamp(certificate.not_after_s, UTC)
    _say(f"enrolled as {certificate.name.uri}, certificate until {until:%Y-%m-%d %H:%M} UTC")
    if done.not_yet:
        _say(f"it was not used yet: {done.not_yet}")


@app.command()
def status(config: Path = _ConfigOption, as_json: bool = _JsonOption) -> None:
    """Show what this device serves, what is under way, and what waits for the fleet manager."""
    with _errors(as_json):
        from agent.config import load_config
        from agent.status import read_status

        found = read_status(load_config(config))
    if as_json:
        _print_json(found.to_json())
        return
    agent = f"running (process {found.pid})" if found.running else "not running"
    typer.echo(f"device {found.device}, class {found.device_class}: agent {agent}")
    typer.echo(f"state in {found.state_dir}")
    if found.identity:
        until = datetime.fromtimestamp(found.identity["not_after_s"], UTC)
        _say(f"known as {found.identity['name']} until {until:%Y-%m-%d %H:%M} UTC")
    if found.models:
        typer.echo("")
        _print_table(
            ("MODEL", "VERSION", "PREVIOUS", "ROLLOUT", "MANIFEST"),
            [
                (
                    it.model,
                    it.version or "-",
                    it.previous_version or "-",
                    it.rollout_id,
                    it.manifest_sha256[:12],
                )
                for it in found.models
            ],
        )
        for it in found.models:
            _tell_beside(it)
            _tell_memory(it)
    else:
        typer.echo("no model is installed")
    for going in found.deployments:
        _say(
            f"under way: {going['bundle']} in {going['phase']}, attempt {going['attempt']}, "
            f"rollout {going['rollout_id']}"
        )
    for refused in found.refusals[-3:]:
        _say(f"refused in {refused['rollout_id']}: {refused['reason']}")
    typer.echo(f"{found.spool['reports']} reports wait ({found.spool['size_bytes']} bytes)")
    versions = ", ".join(f"{role} {number}" for role, number in found.trust["versions"].items())
    _say(f"trusted metadata: {versions or 'none yet'}")


def _tell_beside(model: "InstalledModel") -> None:
    """What is held beside the version that answers, and what it gets."""
    beside = model.beside
    if not beside:
        return
    share = f"{beside['traffic_bp'] / 100:g} % of requests"
    gets = {"shadow": f"gets copies of {share}", "arm": f"answers {share}", "standby": "waits"}
    role = str(beside["role"])
    _say(
        f"{model.model}: version {beside['version']} is held beside as {role} and {gets.get(role, share)}, "
        f"rollout {beside['rollout_id']}"
    )


def _tell_memory(model: "InstalledModel") -> None:
    """How a model was brought in and what it takes."""
    words = {
        "beside": "loaded beside the one before",
        "unload_first": "loaded after the one before was unloaded",
    }
    if model.swap:
        mode = str(model.swap.get("mode", ""))
        typer.echo(f"{model.model}: {words.get(mode, mode)}: {model.swap.get('reason', '')}")
    if model.memory_bytes is not None:
        form = ", loaded from its saved form" if model.saved_form else ""
        typer.echo(f"{model.model}: took {model.memory_bytes / (1 << 20):.1f} MiB at most{form}")


@app.command()
def doctor(config: Path = _ConfigOption, as_json: bool = _JsonOption) -> None:
    """Check everything the agent needs, and say what to do about what is wrong. Exit code 3 when a check fails."""
    with _errors(as_json):
        from agent.config import load_config
        from agent.doctor import Level, examine

        loaded = load_config(config)
        findings = []
        if not as_json:
            typer.echo(f"OK    configuration: {config}")
        for finding in examine(loaded):
            findings.append(finding)
            if not as_json:
                head = f"{finding.level.value.upper():5} {finding.check}: {finding.text}"
                _say(head, indent=6)
                if finding.advice:
                    _say(f"      -> {finding.advice}", indent=9)
    failed = any(finding.level is Level.FAIL for finding in findings)
    if as_json:
        rows = [
            {"check": it.check, "level": it.level.value, "text": it.text, "advice": it.advice}
            for it in findings
        ]
        _print_json({"ok": not failed, "findings": rows})
    raise typer.Exit(_REFUSED if failed else _DONE)


@app.command()
def selftest(config: Path = _ConfigOption, as_json: bool = _JsonOption) -> None:
    """Run the golden cases of every installed model in a throw-away process. Exit code 3 when one fails."""
    with _errors(as_json):
        from agent.config import load_config
        from agent.selftest import run_selftest

        checks = []
        for check in run_selftest(load_config(config)):
            checks.append(check)
            if not as_json:
                typer.echo(
                    f"{'OK' if check.ok else 'FAIL':5} {check.model} {check.version}: {check.text}"
                )
    failed = any(not check.ok for check in checks)
    if as_json:
        _print_json({"ok": not failed, "models": [asdict(check) for check in checks]})
    elif not checks:
        typer.echo("no model is installed")
    raise typer.Exit(_REFUSED if failed else _DONE)


@app.command()
def verify(
    bundle: Path = typer.Argument(..., help="Folder of a bundle."), as_json: bool = _JsonOption
) -> None:
    """Hash every file of a bundle and check it against its manifest. Exit code 3 when something differs."""
    with _errors(as_json):
        from agent.bundle import manifest_sha256
        from agent.bundle.folder import read_bundle, verify_folder

        verify_folder(bundle)
        manifest, raw = read_bundle(bundle)
        digest = manifest_sha256(raw)
    if as_json:
        _print_json(
            {
                "ok": True,
                "model": manifest.model,
                "version": manifest.version,
                "class": manifest.device_class,
                "manifest_sha256": digest,
                "size_bytes": manifest.size_bytes,
                "files": len(manifest.files),
            }
        )
        return
    typer.echo(
        f"{manifest.model} {manifest.version} for {manifest.device_class}: {len(manifest.files)} files, "
        f"{manifest.size_bytes} bytes, all as the manifest says\nmanifest {digest}"
    )


@app.command("config")
def show_config(
    example: bool = typer.Option(False, "--example", help="Print a documented configuration."),
    path: Path | None = typer.Option(None, "--config", "-c", help="Check this file instead."),
) -> None:
    """Print a documented configuration (--example), or check one (--config)."""
    with _errors():
        from agent.config import example_toml, load_config

        if example:
            typer.echo(example_toml(), nl=False)
            return
        if path is None:
            raise ConfigError(
                "say --example to print a configuration, or --config FILE to check one"
            )
        load_config(path)
    typer.echo(f"{path} is in order")
