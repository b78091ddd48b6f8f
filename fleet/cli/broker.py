"""``fleet broker``: a broker of one's own, for devices beyond this machine.

Rules kept here: ``config`` writes the same files for the same fleet folder and touches nothing when they are right; it
refuses when a file that the broker needs is missing, and says what makes it.
"""

import asyncio
import os
import pwd
import re
import signal
from pathlib import Path
from typing import Annotated, Final

import typer

from fleet.broker_mode import BrokerPlace, parse_broker_mode
from fleet.cli.output import JsonOption, errors, print_json, say
from fleet.config import load_config
from fleet.errors import ConfigError, RequestError, ServerError
from fleet.home import Home, PkiPaths, home_of
from fleet.messaging.mosquitto import (
    ACL_FILE,
    CONFIG_FILE,
    PID_FILE,
    MosquittoSettings,
    mosquitto_acl,
    mosquitto_config,
)

__all__ = ["app"]

_LISTEN: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")
_DEVICE_ID: Final = re.compile(r"[a-z0-9-]{1,40}")

app = typer.Typer(
    no_args_is_help=True, help="Run a real broker (Mosquitto) for devices beyond this machine."
)

HomeOption = typer.Option(
    None, "--home", help="Fleet folder; by default $MUSTER_HOME, else ./muster-fleet."
)


@app.command("config")
def write_config(  # noqa: PLR0913, PLR0917 (the options of a command)
    home: Path | None = HomeOption,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write; by default broker/ in the fleet folder."),
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", help="Where the broker listens: ADDRESS:PORT.")
    ] = "0.0.0.0:8883",
    crl: Annotated[
        bool, typer.Option("--crl/--no-crl", help="Refuse the certificates of revoked devices.")
    ] = True,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            help="Where files and certificates will lie, if the broker runs on another host: a folder there.",
        ),
    ] = "",
    user: Annotated[
        str,
        typer.Option(
            "--user", help="Account Mosquitto runs as; by default the owner of the broker's key."
        ),
    ] = "",
    as_json: bool = JsonOption,
) -> None:
    """Write Mosquitto's configuration and topic rules for this fleet."""
    with errors(as_json):
        place = Home(home_of(home))
        fleet = load_config(place.config).fleet.name
        _require_files(place.pki, crl)
        folder = (out or place.path / "broker").absolute()
        host, port = _parse_listen(listen)
        settings = MosquittoSettings(
            fleet=fleet,
            host=host,
            port=port,
            folder=Path(at) if at else folder,
            pki=Path(at) if at else place.pki.folder.absolute(),
            user=user or ("mosquitto" if at else _owner(place.pki.broker_key)),
            crl=crl,
        )
        texts = {CONFIG_FILE: mosquitto_config(settings), ACL_FILE: mosquitto_acl(fleet)}
        changed = _write(folder, texts)
        if as_json:
            print_json({"folder": str(folder), "files": sorted(texts), "changed": changed})
            return
        _tell(folder, changed, at, place.pki, crl)


@app.command("put-off")
def put_off_device(
    device: Annotated[str, typer.Argument(help="Id of the device.")],
    home: Path | None = HomeOption,
    pid_file: Annotated[
        Path | None,
        typer.Option(
            "--pid-file",
            help="Of the broker, which reads revocations anew first; by default the one `fleet broker config` "
            "names, if it is there.",
        ),
    ] = None,
    as_json: bool = JsonOption,
) -> None:
    """End the open connection of a revoked device at the broker; it cannot come back."""
    from fleet.messaging.eviction import put_off

    with errors(as_json):
        if not _DEVICE_ID.fullmatch(device):
            raise RequestError(f"{device!r} is no device id: 1 to 40 of a-z, 0-9 and '-'")
        folder = Home(home_of(home))
        broker = _external(load_config(folder.config).broker.mode)
        reloaded = _reload(pid_file or folder.path / "broker" / PID_FILE, pid_file is not None)
        asyncio.run(put_off(broker, folder.pki, device))
        if as_json:
            print_json({"device": device, "revocations_reloaded": reloaded})
            return
        say(f"{device} is off the broker at {broker.host}:{broker.port}")
        if not reloaded:
            say(
                "The broker was not told to read revocations anew: send it SIGHUP (systemctl reload "
                "mosquitto), or the device comes back.",
                style="yellow",
            )


def _external(mode: str) -> BrokerPlace:
    place = parse_broker_mode(mode)
    if place is None or not place.tls:
        raise ConfigError(
            f"[broker] mode = {mode!r}: only a broker over TLS (mqtts://HOST:PORT) knows devices by their certificates"
        )
    return place


def _reload(pid_file: Path, is_asked: bool) -> bool:
    """Send SIGHUP to the broker; False when there is no such file and nobody named it."""
    try:
        pid = int(pid_file.read_text(encoding="ascii").strip())
        os.kill(pid, signal.SIGHUP)
    except FileNotFoundError as error:
        if is_asked:
            raise ConfigError(f"{pid_file} is not there: is it the broker's pid_file?") from error
        return False
    except (OSError, ValueError) as error:
        raise ServerError(
            f"the broker of {pid_file} was not told to read revocations anew ({error}): run this as its account or as "
            "root"
        ) from error
    return True


def _require_files(pki: PkiPaths, crl: bool) -> None:
    wanted = [pki.device_ca, pki.broker, pki.broker_key, *([pki.revoked] if crl else [])]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise ConfigError(
            f"the broker needs {', '.join(str(path) for path in missing)}, which is not there: `fleet tls init` "
            f"makes the certificates of a fleet{', and --no-crl does without revocations' if crl else ''}"
        )


def _parse_listen(text: str) -> tuple[str, int]:
    found = _LISTEN.fullmatch(text)
    if found is None or not 0 < int(found[2]) <= 65535:
        raise RequestError(f"--listen {text!r} is no address: use ADDRESS:PORT like 0.0.0.0:8883")
    return found[1].strip("[]"), int(found[2])


def _owner(path: Path) -> str:
    uid = path.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "mosquitto"  # an owner without a name here, for example in a container


def _write(folder: Path, texts: dict[str, str]) -> list[str]:
    """Write what differs; the names of those. Each file is seen whole or not at all."""
    changed = []
    try:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            path = folder / name
            if path.is_file() and path.read_bytes() == text.encode():
                continue
            scratch = path.with_name(f".{name}.tmp")
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(path)
            changed.append(name)
    except OSError as error:
        raise ServerError(f"{folder} cannot be written: {error.strerror}") from error
    return changed


def _tell(folder: Path, changed: list[str], at: str, pki: PkiPaths, crl: bool) -> None:
    for name in (CONFIG_FILE, ACL_FILE):
        say(f"{folder / name}: {'written' if name in changed else 'as it should be'}")
    if at:
        names = [pki.device_ca, pki.broker, pki.broker_key, *([pki.revoked] if crl else [])]
        say(
            f"Copy both, and {', '.join(path.name for path in names)} from {pki.folder}, to {at} on the broker's "
            f"host, with a folder data/ there"
        )
    say(f"Start it: mosquitto -c {Path(at or folder) / CONFIG_FILE}")
    say(
        'Then set [broker] mode = "mqtts://HOST:PORT" in fleet.toml, HOST as in the broker\'s certificate'
    )
