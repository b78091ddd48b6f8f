"""``fleet-sim``: worlds of devices that do not exist, against a fleet manager that does."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.live import Live
from rich.text import Text

from fleet.cli.output import JsonOption, errors, print_json, print_table, progress_console
from simulator.addresses import FleetAccess, find_fleet
from simulator.errors import ScenarioError
from simulator.report import Summary, summary_json
from simulator.scenario import Scenario, load_scenario, packaged_scenarios, scenario_text
from simulator.world import World

# The database of a virtual fleet manager is heavy, and devices on the wire need none.
if TYPE_CHECKING:
    from fleet.rollout import Rollout
    from simulator.virtual.run import VirtualOutcome

__all__ = ["app"]

SHOW_EVERY_S = 0.5  # on a terminal
SAY_EVERY_S = 5.0  # elsewhere
MAX_SEEDS = 100_000

app = typer.Typer(
    name="fleet-sim",
    help="Simulated devices, with the agent's real code, against a running fleet manager.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _main() -> None:
    """Keeps ``run`` a command of its own while it has few neighbours."""


@app.command()
def run(  # noqa: PLR0913, PLR0917 (one parameter an option)
    scenario: str = typer.Argument(help="A scenario file, or the name of a packaged scenario."),
    home: Path | None = typer.Option(
        None, help="Folder of the fleet manager; its run.json and root.json are read."
    ),
    run_json: Path | None = typer.Option(None, help="The run.json itself; root.json beside it."),
    devices: int | None = typer.Option(None, help="How many devices, instead of the scenario's."),
    duration: float | None = typer.Option(None, help="End after so many seconds; 0 is never."),
    seed: int | None = typer.Option(None, help="Seed of everything drawn by chance."),
    verbose: bool = typer.Option(False, "--verbose", help="Show the devices' own log messages."),
    as_json: bool = JsonOption,
) -> None:
    """Join devices to a running fleet manager until the time is over, or until Ctrl-C or SIGTERM.

    A scenario with time = "virtual" needs no fleet manager: its rollout runs to its end in a moment.
    """
    with errors(as_json):
        chosen = load_scenario(scenario).changed(count=devices, duration_s=duration, seed=seed)
    if chosen.is_virtual:
        _run_virtual(chosen, (home, run_json), as_json)
        return
    with errors(as_json):
        access = find_fleet(chosen.fleet, home=home, run_file=run_json)
        logging.basicConfig(
            level=logging.INFO if verbose else logging.ERROR,
            format="%(levelname)s %(name)s: %(message)s",
        )
        summary = _run(chosen, access)
    if as_json:
        print_json(summary_json(summary))
    else:
        print_table(f"World of {summary.devices} devices", ("what", "figure"), summary.rows())
    if summary.failed_devices:
        raise typer.Exit(1)


@app.command()
def study(  # noqa: PLR0913, PLR0917 (one parameter an option)
    scenario: str = typer.Argument(help="A virtual scenario: a file, or a packaged one's name."),
    seeds: int = typer.Option(20, min=1, max=MAX_SEEDS, help="How many seeds, from --seed on."),
    seed: int | None = typer.Option(None, help="The first seed, instead of the scenario's."),
    devices: int | None = typer.Option(None, help="How many devices, instead of the scenario's."),
    jobs: int = typer.Option(0, min=0, max=64, help="Processes; 0 is one for each processor."),
    html: Path | None = typer.Option(None, help="Write a page with plots and every seed there."),
    as_json: bool = JsonOption,
) -> None:
    """Repeat a virtual scenario over seeds: false rollbacks or power, time to detect, devices exposed."""
    from simulator.virtual.page import study_page
    from simulator.virtual.study import run_seeds, summed_up

    with errors(as_json):
        chosen = load_scenario(scenario).changed(count=devices, seed=seed)
        first = chosen.devices.seed
        numbers = range(first, first + seeds)
        outcomes = []
        for outcome in run_seeds(chosen, numbers, jobs or os.cpu_count() or 1):
            outcomes.append(outcome)
            progress_console.print(_one_seed(outcome), markup=False, highlight=False)
        found = summed_up(chosen, Path(scenario).stem, outcomes)
        if html is not None:
            _write(html, study_page(found, outcomes, scenario_text(scenario)))
    if as_json:
        print_json({**found.to_json(), "outcomes": [one.to_json() for one in outcomes]})
    else:
        print_table(f"Study over {seeds} seeds", ("what", "figure"), found.rows())


@app.command()
def scenarios(
    name: str | None = typer.Argument(None, help="Print this one, to start your own from."),
    as_json: bool = JsonOption,
) -> None:
    """List the packaged scenarios, or print one."""
    with errors(as_json):
        packaged = packaged_scenarios()
        if name is not None:
            load_scenario(name)
            typer.echo(packaged[name].read_text(), nl=False)
            return
        about = {known: _about(path) for known, path in packaged.items()}
    if as_json:
        print_json(about)
    else:
        print_table("Packaged scenarios", ("name", "what happens"), list(about.items()))


def _run_virtual(
    scenario: Scenario, fleets: tuple[Path | None, Path | None], as_json: bool
) -> None:
    from simulator.virtual.run import run_virtual

    with errors(as_json):
        if any(fleets):
            raise ScenarioError(
                "a virtual world has a fleet manager of its own: leave --home and --run-json out."
            )
        outcome = asyncio.run(run_virtual(scenario, _teller()))
    if as_json:
        print_json(outcome.to_json())
        return
    print_table(f"Virtual world of {outcome.devices} devices", ("what", "figure"), outcome.rows())
    told = [(f"{one.after_s / 60:.1f}", one.action, one.reason) for one in outcome.decisions]
    print_table("Decisions", ("minute", "what", "because"), told)


def _teller() -> Callable[[float, "Rollout"], None]:
    """Says on stderr how far a virtual rollout is, now and then."""
    said_s = time.monotonic()

    def told(after_s: float, rollout: "Rollout") -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= SAY_EVERY_S:
            said_s = time.monotonic()
            line = f"minute {after_s / 60:.1f}: {rollout.reason}"
            progress_console.print(line, markup=False, highlight=False)

    return told


def _one_seed(outcome: "VirtualOutcome") -> str:
    minutes = f"{outcome.after_s / 60:.1f} min"
    return (
        f"seed {outcome.seed}: {outcome.state} after {minutes}, {outcome.exposed} devices exposed"
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ScenarioError(f"{path} cannot be written: {error.strerror}.") from error


def _about(path: Path) -> str:
    """The comment at the head of a scenario."""
    said = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        said.append(line.removeprefix("#").strip())
    return " ".join(said)


def _run(scenario: Scenario, access: FleetAccess) -> Summary:
    try:
        import uvloop
    except ImportError:  # not on this platform: asyncio's own loop does the same, with more memory
        return asyncio.run(_world(scenario, access))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_world(scenario, access))


async def _world(scenario: Scenario, access: FleetAccess) -> Summary:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with World(scenario, access) as world:
        showing = asyncio.create_task(_show(world))
        try:
            async with asyncio.timeout(scenario.run.duration_s or None):
                await stop.wait()
        except TimeoutError:
            pass  # the time the scenario asked for is over
        finally:
            showing.cancel()
            await asyncio.wait({showing})
    return world.summary()


async def _show(world: World) -> None:
    """One line that is kept up to date on a terminal, a line now and then elsewhere. On stderr."""
    if not progress_console.is_terminal:
        while True:
            await asyncio.sleep(SAY_EVERY_S)
            progress_console.print(world.progress().line(), markup=False, highlight=False)
    with Live(console=progress_console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(Text(world.progress().line()), refresh=True)
            await asyncio.sleep(SHOW_EVERY_S)
