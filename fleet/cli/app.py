"""The ``fleet`` command: which commands there are, and where each lives.

Rules kept here: a command's module is imported when the command is used, so that none waits for another's libraries;
and a command whose extra is not installed still shows in the help, and says what to install when it is called.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import typer
import typer.core
import typer.main

from fleet.cli.credentials import with_credentials

__all__ = ["COMMANDS", "OUR_PACKAGES", "Command", "app", "missing_extra"]

OUR_PACKAGES: Final = frozenset({"agent", "fleet", "protos", "simulator"})


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is found: ``attribute`` of ``module`` is a Typer application or a function."""

    name: str
    module: str
    attribute: str
    extra: str = "fleet"


COMMANDS: Final[tuple[Command, ...]] = (
    Command("demo", "fleet.cli.demo", "demo", extra="demo"),
    Command("init", "fleet.cli.init", "init"),
    Command("serve", "fleet.cli.serve", "serve"),
    Command("status", "fleet.cli.status", "status"),
    Command("bundle", "fleet.cli.bundle", "app"),
    Command("rollout", "fleet.cli.rollout", "app"),
    Command("key", "fleet.cli.key", "app"),
    Command("device", "fleet.cli.device", "app"),
    Command("webhook", "fleet.cli.webhook", "app"),
    Command("token", "fleet.cli.token", "app"),
    Command("audit", "fleet.cli.audit_log", "app"),
    Command("tls", "fleet.cli.tls", "app"),
    Command("broker", "fleet.cli.broker", "app"),
)


def missing_extra(command: str, extra: str, module: str) -> str:
    """What to say when a command needs a library that is not installed."""
    return f"{command} needs the {extra} extra ({module} is not installed): pip install 'muster-edge[{extra}]'"


class LazyGroup(typer.core.TyperGroup):
    """A group that loads a command when it is asked for it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._ours = {command.name: command for command in COMMANDS}
        for command in COMMANDS:  # the names are known at once; the usage error suggests from them
            self.commands.setdefault(command.name, typer.core.TyperCommand(command.name))
        self._loaded: dict[str, Any] = {}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = self._ours.get(cmd_name)
        if command is None:
            return super().get_command(ctx, cmd_name)
        if cmd_name not in self._loaded:
            self._loaded[cmd_name] = _load(command)
        return self._loaded[cmd_name]


def _load(command: Command) -> Any:
    """The command, or a stand-in for one that cannot be imported, so that the help always works."""
    try:
        found = getattr(importlib.import_module(command.module), command.attribute)
    except ImportError as error:
        return _stub(command, error)
    if isinstance(found, typer.Typer):
        for registered in found.registered_commands:
            if registered.callback is not None:
                registered.callback = with_credentials(registered.callback)
        loaded = typer.main.get_group(found)
    else:
        loaded = _single(command, with_credentials(found))
    loaded.name = command.name
    return loaded


def _single(command: Command, function: Callable[..., Any], **settings: Any) -> Any:
    """A command made of one function."""
    single = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    single.command(command.name, **settings)(function)
    return typer.main.get_command(single)


def _stub(command: Command, error: ImportError) -> Any:
    """Takes any arguments and says what to install. A part of Muster that fails is a bug, and shows."""
    library = (error.name or "").partition(".")[0]
    is_missing = isinstance(error, ModuleNotFoundError) and library not in OUR_PACKAGES

    def refuse(arguments: list[str] | None = typer.Argument(None, hidden=True)) -> None:
        if not is_missing:
            raise error
        text = missing_extra(f"`fleet {command.name}`", command.extra, library)
        typer.echo(f"error: {text}", err=True)
        raise typer.Exit(2)

    wanted = f"needs the {command.extra} extra: pip install 'muster-edge[{command.extra}]'"
    refuse.__doc__ = f"({wanted if is_missing else 'cannot be loaded'})"
    loaded = _single(command, refuse, context_settings={"ignore_unknown_options": True})
    loaded.name = command.name
    return loaded


app = typer.Typer(
    name="fleet",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Ship machine-learning models to a fleet of edge devices, prove each step, roll back by itself.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            said = version("muster-edge")
        except PackageNotFoundError:
            said = "unknown (running from a source folder that is not installed)"
        typer.echo(f"muster-edge {said}")
        raise typer.Exit


@app.callback()
def main(
    show_version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and exit.",
        callback=_print_version,
        is_eager=True,
    ),
) -> None:
    """Ship machine-learning models to a fleet of edge devices, prove each step, roll back by itself."""
