"""``fleet rollout``: plan, start, watch and end rollouts.

Rules kept here: what is asked for is one spec, from a rollout.toml, from flags, or from both with
the flags winning; the server checks it. ``watch`` ends with 0 promoted, 3 rolled back, 1 aborted or
superseded, 4 still under way when the time is up.
"""

import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fleet.cli import rollout_view as view
from fleet.cli.client import FleetClient, ServerOption
from fleet.cli.output import (
    ExitCode,
    JsonOption,
    console,
    errors,
    print_json,
    print_table,
    progress_console,
    say,
)
from fleet.cli.spec_input import Flags, asked_spec
from fleet.cli.watch_view import comparison_view, follower
from fleet.errors import RequestError, ServerError
from fleet.rollout.reading import parse_duration
from fleet.rollout.spec import Strategy

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Send a bundle to the fleet in stages; go on, hold or roll back by what the devices report.",
)

_ENDS: Final = {
    "promoted": ExitCode.DONE,
    "rolled_back": ExitCode.REFUSED,
    "aborted": ExitCode.FAILED,
    "superseded": ExitCode.FAILED,
}
SERVER_GONE_S: Final = 60.0  # a fleet manager that restarts does not end a watch

BundleArgument = Annotated[
    str, typer.Argument(help="Path of the bundle, as `fleet bundle list` shows it.")
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="A rollout.toml; flags override what it says."),
]
StageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stage",
        metavar="PERCENT:BAKE",
        help="A stage, for example 10%:15m, '20 devices:15m' or 50%:1h:approval; a kind like :shadow "
        "may follow; once for each stage, up to 100%.",
    ),
]
SelectOption = Annotated[
    list[str] | None,
    typer.Option(
        "--select", metavar="LABEL=VALUE", help="A label a device must have; may be repeated."
    ),
]
GuardOption = Annotated[
    list[str] | None,
    typer.Option(
        "--guard",
        metavar="NAME=VALUE",
        help="A limit, for example max_error_rate=0.02, max_over_latency_rate=off, statistics=on or "
        "metrics.error_rate=1.25; may be repeated.",
    ),
]
StrategyOption = Annotated[
    str,
    typer.Option("--strategy", help=f"One of {', '.join(Strategy)}.", show_default="canary"),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="LABEL=VALUE", help="Devices to leave out; may be repeated."),
]
HoursOption = Annotated[
    list[str] | None,
    typer.Option(
        "--open-hours",
        metavar="SPAN",
        help="Maintenance window in each device's local time, like 'mon-fri 01:00-05:00'; may be "
        "repeated.",
    ),
]
HoldBackOption = Annotated[
    str,
    typer.Option(
        "--hold-back",
        help="Devices that get the bundle last, to compare with: 5%, a number, or 0.",
        show_default="auto",
    ),
]
RetriesOption = Annotated[
    int | None,
    typer.Option("--retries", help="How often a device that refused or reverted may try again."),
]
RoutingKeyOption = Annotated[
    str,
    typer.Option("--routing-key", help="Request parameter by which an A/B stage divides requests."),
]
OlderOption = Annotated[
    bool,
    typer.Option("--older", help="Devices that serve a newer release may go back to this one."),
]
DeadlineOption = Annotated[
    str, typer.Option("--install-deadline", help="Time a device has to install, like 1h.")
]
RolloutArgument = Annotated[
    str, typer.Argument(help="Id of the rollout, like r7.", show_default="the newest")
]
RequiredRollout = Annotated[
    str, typer.Argument(help="Id of the rollout, like r7; `latest` is the newest.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")]
TimeoutOption = Annotated[
    str,
    typer.Option("--timeout", help="Stop watching after this time, like 30m (exit code 4)."),
]
EveryOption = Annotated[float, typer.Option("--every", min=0.05, help="Seconds between looks.")]


@app.command()
def plan(  # noqa: PLR0913, PLR0917 -- each parameter is an option
    bundle: BundleArgument = "",
    file: FileOption = None,
    stage: StageOption = None,
    select: SelectOption = None,
    guard: GuardOption = None,
    install_deadline: DeadlineOption = "",
    strategy: StrategyOption = "",
    exclude: ExcludeOption = None,
    open_hours: HoursOption = None,
    hold_back: HoldBackOption = "",
    retries: RetriesOption = None,
    routing_key: RoutingKeyOption = "",
    older: OlderOption = False,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Show who would be in which stage, and what stands in the way. Changes nothing.

    Exits 3 when the rollout would be refused.
    """
    flags = Flags(
        stage, select, guard, install_deadline, strategy, exclude, open_hours, hold_back, retries,
        routing_key, older,
    )  # fmt: skip
    with errors(as_json), FleetClient(server) as client:
        spec = asked_spec(bundle, file, flags)
        planned = client.post_json("/v1/rollouts/plan", spec)
    if as_json:
        print_json(planned)
    else:
        view.print_plan(planned)
    if planned["problems"]:
        raise typer.Exit(ExitCode.REFUSED)


@app.command()
def start(  # noqa: PLR0913, PLR0917 -- each parameter is an option
    bundle: BundleArgument = "",
    file: FileOption = None,
    stage: StageOption = None,
    select: SelectOption = None,
    guard: GuardOption = None,
    install_deadline: DeadlineOption = "",
    strategy: StrategyOption = "",
    exclude: ExcludeOption = None,
    open_hours: HoursOption = None,
    hold_back: HoldBackOption = "",
    retries: RetriesOption = None,
    routing_key: RoutingKeyOption = "",
    older: OlderOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start although the plan shows a problem.")
    ] = False,
    follow: Annotated[
        bool,
        typer.Option("--watch", "--wait", help="Watch it to its end, as `rollout watch` does."),
    ] = False,
    supersede: Annotated[
        bool,
        typer.Option("--supersede", help="End the rollouts that stand in its way; see `list`."),
    ] = False,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Start a rollout."""
    flags = Flags(
        stage, select, guard, install_deadline, strategy, exclude, open_hours, hold_back, retries,
        routing_key, older,
    )  # fmt: skip
    with errors(as_json), FleetClient(server) as client:
        spec = asked_spec(bundle, file, flags)
        asked = f"force={str(force).lower()}&supersede={str(supersede).lower()}"
        started = client.post_json(f"/v1/rollouts?{asked}", spec)
        if not as_json:
            # Where what follows is JSON, a sentence is for people.
            to = progress_console if follow and not console.is_terminal else console
            say(f"{started['id']}: {started['bundle']} {started['reason']}", stream=to)
        if follow:
            _watch(client, started["id"], 0.0, 1.0, as_json)
    if as_json:
        print_json(started)


@app.command("list")
def list_rollouts(
    model: Annotated[str, typer.Option("--model", help="Only rollouts of this model.")] = "",
    state: Annotated[str, typer.Option("--state", help="Only rollouts in this state.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 50,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """List rollouts, newest first."""
    with errors(as_json), FleetClient(server) as client:
        asked: dict[str, str | int] = {"model": model, "state": state, "limit": limit}
        found = client.get_json("/v1/rollouts", asked)
    if as_json:
        print_json(found)
        return
    print_table(
        "Rollouts",
        ("id", "bundle", "state", "stage", "started", "reason"),
        [view.list_row(rollout) for rollout in found["rollouts"]],
        empty="none; start one with `fleet rollout start BUNDLE`",
        drop=("started", "stage"),
        whole=("state", "started", "stage"),
    )


@app.command()
def status(
    rollout: RolloutArgument = "latest",
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Show one rollout: its stages, its canary and control devices, and why it holds."""
    with errors(as_json), FleetClient(server) as client:
        found = client.get_json(f"/v1/rollouts/{rollout}")
    if as_json:
        print_json(found)
    else:
        console.print(view.status_view(found))
        console.print(comparison_view(found, console.width))


@app.command()
def watch(
    rollout: RolloutArgument = "latest",
    timeout: TimeoutOption = "",
    every: EveryOption = 1.0,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Follow a rollout to its end: a page in place on a terminal, else a line of JSON a change.

    Exits 0 promoted, 3 rolled back, 1 aborted or superseded, 4 still under way when the time is up.
    """
    with errors(as_json), FleetClient(server) as client:
        timeout_s = parse_duration(timeout, "--timeout") if timeout else 0.0
        _watch(client, rollout, timeout_s, every, as_json)


@app.command()
def audit(
    rollout: RolloutArgument = "latest",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 100,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Show every decision with its reason, oldest first, and make each again from its evidence.

    Exits 3 when one comes out differently.
    """
    with errors(as_json), FleetClient(server) as client:
        found = client.get_json(f"/v1/rollouts/{rollout}/decisions", {"limit": limit})
        again = client.get_json(f"/v1/rollouts/{rollout}/audit")
    if as_json:
        print_json({**found, "audit": again})
    else:
        print_table(
            "Decisions",
            ("when", "who", "what", "stage", "verdict", "reason"),
            [view.entry_row(entry) for entry in reversed(found["decisions"])],
            drop=("verdict", "stage"),
            whole=("when",),
        )
        view.print_audit(again)
    if not again["equal"]:
        raise typer.Exit(ExitCode.REFUSED)


@app.command()
def pause(
    rollout: RequiredRollout,
    reason: ReasonOption = "",
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Stop further devices from installing; nothing is decided until `resume`."""
    _change(rollout, "pause", {"reason": reason}, server, as_json)


@app.command()
def resume(
    rollout: RequiredRollout,
    reason: ReasonOption = "",
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Go on with a paused rollout; its stage bakes from the beginning."""
    _change(rollout, "resume", {"reason": reason}, server, as_json)


@app.command()
def approve(
    rollout: RequiredRollout,
    reason: ReasonOption = "",
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Approve the next stage, or the first one of a rollout that waits for it."""
    _change(rollout, "approve", {"reason": reason}, server, as_json)


@app.command()
def advance(
    rollout: RequiredRollout,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit trail; required.")],
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Go on to the next stage although the gate holds; never where it fails.

    Exits 3 when the gate fails the stage.
    """
    _change(rollout, "advance", {"reason": reason}, server, as_json)


@app.command()
def stop(
    rollout: RequiredRollout,
    stratum: Annotated[
        str,
        typer.Option("--stratum", metavar="CLASS/PROVIDER", help="The devices, like edge/cpu."),
    ],
    reason: ReasonOption = "",
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Take a bundle back from one stratum, and go on with the others."""
    _change(rollout, "stop_stratum", {"reason": reason, "stratum": stratum}, server, as_json)


@app.command()
def abort(
    rollout: RequiredRollout,
    reason: ReasonOption = "",
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """End a rollout; devices that have the bundle keep it. To take it back use `rollback`."""
    _change(rollout, "abort", {"reason": reason}, server, as_json)


@app.command()
def rollback(
    rollout: RequiredRollout,
    reason: ReasonOption = "",
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Take a bundle back: every device that has it returns to what it served before."""
    _change(rollout, "rollback", {"reason": reason}, server, as_json)


def _change(rollout: str, event: str, said: dict[str, str], server: str, as_json: bool) -> None:
    with errors(as_json), FleetClient(server) as client:
        changed = client.post_json(f"/v1/rollouts/{rollout}/{event}", said)
    if as_json:
        print_json(changed)
    else:
        say(f"{changed['id']}: {changed['reason']}")


def _watch(
    client: FleetClient, rollout: str, timeout_s: float, every_s: float, as_json: bool
) -> None:
    """Raises typer.Exit with the code of the end, or 4 when the time is up."""
    if not rollout:
        raise RequestError("which rollout? Say its id, like r7")
    began = time.monotonic()
    with follower(as_json=as_json) as show:
        found = client.get_json(f"/v1/rollouts/{rollout}")
        heard, is_gone = began, False
        away = console if console.is_terminal else progress_console  # beside the live view
        while True:
            show(found)
            now = time.monotonic()
            if found["final"] or (timeout_s and now - began >= timeout_s):
                break
            time.sleep(min(every_s, timeout_s) if timeout_s else every_s)
            try:
                found = client.get_json(f"/v1/rollouts/{found['id']}")
                heard, is_gone = time.monotonic(), False
            except ServerError as error:
                if time.monotonic() - heard > SERVER_GONE_S:
                    raise
                if not is_gone:
                    say(f"{error} (still trying)", style="yellow", stream=away)
                is_gone = True
    _end(found, timeout_s, as_json)


def _end(found: dict[str, Any], timeout_s: float, as_json: bool) -> None:
    code = _ENDS.get(found["state"], ExitCode.HOLDING)
    if as_json or not console.is_terminal:
        pass  # the last line has said it
    elif code is ExitCode.HOLDING:
        say(f"{found['id']} is still {found['state']} after {timeout_s:g} s: {found['reason']}")
    else:  # the page, which stays, has the whole of it
        say(f"{found['id']}: {found['reason'].partition('; ')[0]}")
    raise typer.Exit(int(code))
