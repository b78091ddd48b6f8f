"""Where the fleet manager of a world is: from its run.json, or said in the scenario. Loopback only.

``fleet serve`` writes run.json into its folder when it is ready; root.json lies beside it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.trust import require_loopback
from fleet.home import home_of
from simulator.errors import ScenarioError
from simulator.scenario import FleetAddress

__all__ = ["RUN_FILE", "Endpoint", "FleetAccess", "find_fleet", "read_run_file"]

RUN_FILE: Final = "run.json"
ROOT_FILE: Final = "root.json"
MAX_FILE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host on loopback and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, what: str) -> "Endpoint":
        """``host:port`` with or without a scheme in front.

        Raises:
            ScenarioError: not of that form. agent.errors.ConfigError: not a loopback address.
        """
        bare = text.rpartition("//")[2].rstrip("/")
        host, colon, port = bare.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ScenarioError(f"{what} = {text!r} is not of the form host:port.")
        return cls(require_loopback(host, what).strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class FleetAccess:
    """All a device must be given: addresses, the bootstrap root, and the fleet's name.

    ``name`` may be empty: the device service tells it.
    """

    name: str
    grpc: Endpoint
    mqtt: Endpoint
    root: bytes
    http: str = ""


def find_fleet(
    said: FleetAddress, *, home: Path | None = None, run_file: Path | None = None
) -> FleetAccess:
    """Put together what the scenario says with what run.json says; the scenario wins.

    Without a scenario's addresses, run.json is looked for in ``run_file``, in ``home``, in
    ``$MUSTER_HOME`` and in ``./muster-fleet``.

    Raises:
        ScenarioError: something is missing or cannot be read; the message says what.
    """
    if home is not None and run_file is not None:
        raise ScenarioError("--home and --run-json say the same thing: give one of them.")
    known: dict[str, str] = {}
    complete = bool(said.grpc and said.mqtt and said.root)
    path = run_file or home_of(home) / RUN_FILE
    if run_file is not None or home is not None or not complete:
        known = read_run_file(path)
    grpc, mqtt = said.grpc or known.get("grpc", ""), said.mqtt or known.get("mqtt", "")
    for key, value in (("grpc", grpc), ("mqtt", mqtt)):
        if not value:
            raise ScenarioError(
                f"no {key} address: {path} has none and the scenario's [fleet] {key} is empty. "
                "A world needs a fleet manager with a device service and a broker."
            )
    root = Path(said.root) if said.root else Path(known.get("root") or path.parent / ROOT_FILE)
    return FleetAccess(
        name=said.name or known.get("fleet", "") or known.get("name", ""),
        grpc=Endpoint.parse(grpc, "[fleet] grpc"),
        mqtt=Endpoint.parse(mqtt, "[fleet] mqtt"),
        root=_read(root, "the fleet's root.json"),
        http=said.http or known.get("http", ""),
    )


def read_run_file(path: Path) -> dict[str, str]:
    """The texts in run.json by key.

    Raises:
        ScenarioError: no such file, or not what ``fleet serve`` writes.
    """
    raw = _read(path, "run.json (is `fleet serve` running? --home names its folder)")
    try:
        content: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{path} is not JSON: {error}. Start `fleet serve` again.") from error
    if not isinstance(content, dict):
        raise ScenarioError(f"{path} is not what `fleet serve` writes: start it again.")
    return {key: value for key, value in content.items() if isinstance(value, str)}


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ScenarioError(f"{path} cannot be read ({error.strerror}): it is {what}.") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ScenarioError(f"{path} is larger than {MAX_FILE_BYTES} bytes: it is not {what}.")
    return raw
