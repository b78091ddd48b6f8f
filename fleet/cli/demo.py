"""``fleet demo``: the whole story on one machine. The story itself is in ``fleet.demo``."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fleet.cli.output import (
    ExitCode,
    JsonOption,
    console,
    errors,
    print_table,
    progress_console,
)
from fleet.demo.result import DemoResult
from fleet.demo.settings import DemoOptions
from fleet.demo.story import Narrator, Story

__all__ = ["demo"]


def demo(
    devices: Annotated[int, typer.Option(min=1, max=5000, help="Simulated devices.")] = 200,
    agents: Annotated[int, typer.Option(min=1, max=20, help="Real agents with onnxruntime.")] = 3,
    keep: Annotated[
        Path | None,
        typer.Option(help="Keep fleet, bundles, agents' state and logs in this new folder."),
    ] = None,
    as_json: bool = JsonOption,
) -> None:
    """Show the whole story on this machine, in about two minutes and without hardware.

    Starts a fleet manager, real agents and simulated devices; rolls out a better model and promotes it, then a broken
    one and rolls it back, while clients ask for labels of real images all the while. Exits 0 only when the good one
    was promoted, the bad one rolled back, and no request failed.
    """
    with errors(as_json):
        if keep is not None and keep.exists() and any(keep.iterdir()):
            raise typer.BadParameter(f"{keep} is not empty: name a new folder", param_hint="--keep")
        folder = keep.absolute() if keep is not None else None
        options = DemoOptions(devices=devices, agents=agents, folder=folder)
        status = progress_console.status("starting")
        narrator = Narrator(
            headline=lambda text: progress_console.print(f"\n[bold]{text}[/bold]", highlight=False),
            line=lambda text: progress_console.print(f"  {text}", highlight=False, markup=False),
            progress=status.update,
        )
        with status:
            result = Story(options, narrator).tell()
    if as_json:
        sys.stdout.write(json.dumps(result.to_json()) + "\n")
    else:
        _print(result)
    raise typer.Exit(ExitCode.DONE if result.ok else ExitCode.FAILED)


def _print(result: DemoResult) -> None:
    print_table(
        f"\nRollouts over {result.fleet_size} devices",
        ("rollout", "version", "end", "devices exposed", "seconds"),
        [
            (
                one.id,
                one.version,
                one.state.replace("_", " "),
                f"{one.exposed_devices} of {result.fleet_size}",
                f"{one.ended_s - one.began_s:.0f}",
            )
            for one in result.rollouts
        ],
    )
    console.print(
        f"{result.rollouts[-1].id} {result.rollouts[-1].reason}", markup=False, highlight=False
    )
    print_table(
        f"\nRequests: {result.requests:,}, failed: {result.failed_requests}",
        ("", "requests", "accuracy", "on all test images", "p50 ms", "p99 ms"),
        [
            (name, one.requests, _percent(one.accuracy), known, one.p50_ms, one.p99_ms)
            for name, known, one in (
                *(
                    (f"version {version}", _percent(result.offline_accuracy[version]), one)
                    for version, one in result.versions.items()
                ),
                *((f"{span} the broken rollout", "", one) for span, one in result.spans.items()),
            )
        ],
    )
    for text in result.errors:
        progress_console.print(f"failed request: {text}", markup=False, style="red")
    verdict = "the better model was promoted, the broken one rolled back, no request failed"
    if not result.ok:
        verdict = "not as it should be: see the tables above"
    progress_console.print(f"\n{verdict} ({result.duration_s:.0f} s)", highlight=False)


def _percent(share: float | None) -> str:
    return "no requests" if share is None else f"{share:.1%}"
