"""What a command shows the fleet manager, and by what it knows it: ``--token`` and ``--ca``, or where they are kept.

Rules kept here: every command that speaks to a fleet manager takes both options, added in one place; the token in
run.json is sent to the fleet manager that wrote it and to no other; a token file that others can read is refused; no
message has a token in it.
"""

import functools
import inspect
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import typer

from fleet.errors import ConfigError
from fleet.home import Home, home_of

__all__ = ["Given", "ca_for", "given", "read_run_file", "token_for", "with_credentials"]

_MAX_TOKEN_BYTES: Final = 4096
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost"})

TOKEN_OPTION: Final = typer.Option(
    "",
    "--token",
    help="Token to show; by default $MUSTER_TOKEN, else the one in run.json of the fleet folder when its fleet manager "
    "is spoken to, else ~/.config/muster/token. Other users of the machine can see a command line: prefer the others.",
    show_default=False,
)
CA_OPTION: Final = typer.Option(
    None,
    "--ca",
    help="Certificates (PEM) that the fleet manager's must be signed by; by default $MUSTER_CA, else the one that "
    "run.json names, else the system's.",
    show_default=False,
)


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says."""

    token: str = ""
    ca: Path | None = None


_NOTHING: Final = Given()
_GIVEN: Final[ContextVar[Given]] = ContextVar("given", default=_NOTHING)


@contextmanager
def given(said: Given) -> Iterator[None]:
    """What the command line says, for the length of the block."""
    before = _GIVEN.set(said)
    try:
        yield
    finally:
        _GIVEN.reset(before)


def with_credentials(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options ``--token`` and ``--ca``, if it has one for the server."""
    signature = inspect.signature(command, eval_str=True)
    if "server" not in signature.parameters or "token" in signature.parameters:
        return command

    @functools.wraps(command)
    def wrapped(*arguments: Any, token: str = "", ca: Path | None = None, **options: Any) -> Any:
        with given(Given(token, ca)):
            return command(*arguments, **options)

    def option(name: str, default: Any, annotation: Any) -> inspect.Parameter:
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(name, kind, default=default, annotation=annotation)

    own = [*signature.parameters.values()]
    at = next(index for index, one in enumerate(own) if one.name == "server") + 1
    more = [option("token", TOKEN_OPTION, str), option("ca", CA_OPTION, Path | None)]
    rest = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own[at:]]
    face: Any = wrapped
    face.__signature__ = signature.replace(parameters=[*own[:at], *more, *rest])
    face.__annotations__ = {**inspect.get_annotations(command), "token": str, "ca": Path | None}
    return wrapped


def token_for(server: str) -> str:
    """The token to show to this server; "" when there is none.

    Raises:
        ConfigError: the file with it cannot be used.
    """
    if _GIVEN.get().token:
        return _GIVEN.get().token
    if from_environment := os.environ.get("MUSTER_TOKEN", ""):
        return from_environment.strip()
    return _of_run_file(server, "token") or _of_file(_token_file())


def ca_for(server: str) -> Path | None:
    """The certificates to trust for this server; None: the system's."""
    said = _GIVEN.get().ca or os.environ.get("MUSTER_CA", "") or _of_run_file(server, "ca")
    return Path(said) if said else None


def read_run_file(path: Path) -> Mapping[str, str]:
    """What a running fleet manager says of itself; empty when none runs there, or it is not for us to read.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): the fleet manager runs as another user. Use --server and "
            "--token"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): remove it, or use --server") from error
    if not isinstance(said, dict):
        return {}
    return {key: value for key, value in said.items() if isinstance(value, str)}


def _of_run_file(server: str, key: str) -> str:
    """What run.json says, if its fleet manager is the one that is spoken to."""
    try:
        said = read_run_file(Home(home_of(None)).run_file)
    except ConfigError:  # it is not needed: the server was named
        return ""
    return said.get(key, "") if _is_same(said.get("http", ""), server) else ""


def _is_same(one: str, other: str) -> bool:
    try:
        mine, theirs = urlsplit(one), urlsplit(other)
        same = (mine.scheme, mine.port) == (theirs.scheme, theirs.port)
        hosts = {mine.hostname, theirs.hostname}
    except ValueError:
        return False
    return same and (len(hosts) == 1 or hosts <= _LOOPBACK)


def _token_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME", "") or "~/.config"
    return Path(base).expanduser() / "muster" / "token"


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            raw = stream.read(_MAX_TOKEN_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): it has your token") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"{path} can be read by others (mode {stat.S_IMODE(mode):o}), and it has your token: chmod 600 {path}. "
            "If somebody else may have read it, have the token revoked"
        )
    return raw.decode("ascii", "replace").strip()
