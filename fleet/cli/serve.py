"""``fleet serve``: run the fleet manager in the foreground."""

import asyncio
import dataclasses
import os
from pathlib import Path

import typer

from fleet.cli.output import errors, progress_console
from fleet.config import FleetConfig, load_config
from fleet.home import Home, home_of

__all__ = ["serve"]


def serve(
    home: Path | None = typer.Option(
        None, "--home", help="Fleet folder; by default $MUSTER_HOME, else ./muster-fleet."
    ),
    broker: str = typer.Option(
        "", "--broker", help="embedded, none or mqtt://HOST:PORT, instead of what fleet.toml says."
    ),
    http: str = typer.Option("", "--http", help="Where the API listens, instead of fleet.toml."),
    grpc: str = typer.Option("", "--grpc", help="Where devices connect, instead of fleet.toml."),
    mqtt: str = typer.Option("", "--mqtt", help="Where the embedded broker listens."),
    json_logs: bool = typer.Option(False, "--json-logs", help="Log one JSON object a line."),
) -> None:
    """Run the fleet manager until it is told to stop. Port 0 takes a free port; run.json says which."""
    # Our children are executed, not forked copies: gRPC need not prepare for them, nor warn.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import uvloop

    from fleet.daemon import serve as run
    from fleet.logs import configure_logging

    with errors():
        place = Home(home_of(home))
        config = _overridden(load_config(place.config), broker, http, grpc, mqtt)
        configure_logging(config.log.level, "json" if json_logs else config.log.format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(place, config, lambda manager: _banner(place, manager)))


def _overridden(config: FleetConfig, broker: str, http: str, grpc: str, mqtt: str) -> FleetConfig:
    """The configuration with what the command line says instead.

    Raises:
        ConfigError: that is not usable.
    """
    return dataclasses.replace(
        config,
        http=dataclasses.replace(config.http, listen=http or config.http.listen),
        grpc=dataclasses.replace(config.grpc, listen=grpc or config.grpc.listen),
        broker=dataclasses.replace(
            config.broker,
            mode=broker or config.broker.mode,
            listen=mqtt or config.broker.listen,
        ),
    ).check()


def _banner(home: Home, manager: object) -> None:
    from fleet.daemon import FleetManager

    assert isinstance(manager, FleetManager)
    assert manager.addresses is not None
    said = manager.addresses.to_json()
    lines = [
        f"Muster fleet manager: fleet {manager.config.fleet.name} in {home.path}",
        f"  people   {said['http']}/docs",
        f"  devices  grpc {said['grpc']}",
        f"           mqtt {said['mqtt'] or 'none'} ({manager.config.broker.mode})",
        *([f"           enrol {said['enrolment']}"] if said["enrolment"] else []),
        "Stop it with Ctrl-C.",
    ]
    progress_console.print("\n".join(lines), highlight=False, markup=False)
