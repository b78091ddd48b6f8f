"""``fleet tls``: the certificates of this fleet's servers, and the authority for its devices'."""

import time
from pathlib import Path
from typing import Annotated

import typer

from fleet.cli.output import JsonOption, errors, print_json, say
from fleet.config import load_config
from fleet.home import Home, home_of
from fleet.registry.authority import load_certificate, spki_sha256
from fleet.registry.pki import init_pki, server_names
from fleet.registry.settings import check_host_names

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Certificates of servers and devices.")


@app.callback()
def _group() -> None:
    """Certificates of servers and devices."""


@app.command("init")
def init(
    home: Path | None = typer.Option(
        None, "--home", help="Fleet folder; by default $MUSTER_HOME, else ./muster-fleet."
    ),
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Host name or address by which this host is reached."),
    ] = None,
    as_json: bool = JsonOption,
) -> None:
    """Make authorities and certificates in the fleet folder, where there are none.

    Run again it makes what is missing, and the servers' certificates anew for other names.
    """
    with errors(as_json):
        place = Home(home_of(home))
        config = load_config(place.config)
        names = check_host_names(name or [], "--name") or config.tls.names
        made = init_pki(place.pki, config.fleet.name, names, time.time())
        known = server_names(place.pki.server)
        fingerprint = spki_sha256(load_certificate(place.pki.server_ca))
    if as_json:
        print_json(
            {
                "folder": str(place.pki.folder),
                "made": list(made),
                "names": list(known),
                "server_ca_sha256": fingerprint,
            }
        )
        return
    say(f"Certificates in {place.pki.folder}: {', '.join(made) or 'all there, nothing made'}")
    say(f"Servers are reached as {', '.join(known)}")
    if not config.grpc.tls:
        say(f"Next: set [grpc] tls = true in {place.config} and start the fleet manager again")
