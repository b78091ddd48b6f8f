"""What a state folder says about its device, read from outside, whether the agent runs or not.

Rules kept here:
- Reading only: the files are opened without a way to write, and a running agent is not held up.
- What is not there yet is empty, what cannot be read is an error that names the file.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlite_utils

from agent.adapters.measured import MeasuredStore
from agent.adapters.state_lock import StateLock
from agent.config import AgentConfig
from agent.errors import DeviceError
from agent.runtime.saved_form import read_form
from agent.state_dir import StatePaths
from agent.update.beside import ROLES

__all__ = ["DeviceStatus", "InstalledModel", "open_database", "read_status"]


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model in its slots; "" where there is nothing."""

    model: str
    version: str
    bundle: str
    manifest_sha256: str
    rollout_id: str
    previous_version: str = ""
    previous_sha256: str = ""
    memory_bytes: int | None = None
    """The most it took in its trial; None: not measured."""
    saved_form: bool = False
    """The device made a form of its own that loads faster, and uses it."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """What is held beside the active version: version, manifest_sha256, rollout_id, role, traffic_bp; empty when
    nothing is."""
    swap: Mapping[str, Any] = field(default_factory=dict)
    """How it was brought in (``agent.update.memory_policy.SwapPlan``); empty when not known."""


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """Everything `fleet-agent status` shows."""

    device: str
    device_class: str
    state_dir: str
    running: bool
    pid: int | None
    models: tuple[InstalledModel, ...]
    deployments: tuple[Mapping[str, Any], ...]
    refusals: tuple[Mapping[str, Any], ...]
    spool: Mapping[str, int]
    trust: Mapping[str, Any]
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Name, serial, not_before_s and not_after_s of the certificate; empty when the device shows none."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def open_database(path: Path) -> sqlite_utils.Database:
    """An existing SQLite file, for reading only.

    Raises:
        DeviceError: it cannot be opened.
    """
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)
    except sqlite3.Error as error:
        raise DeviceError(f"cannot open {path}: {error}. Run as the agent's user.") from error
    return sqlite_utils.Database(connection)


def read_status(config: AgentConfig) -> DeviceStatus:
    """The state of the configured device.

    Raises:
        DeviceError: a file of the state folder cannot be read.
    """
    paths = StatePaths(config.device.state_dir)
    lock = StateLock(paths.state_dir)
    running = lock.is_held()
    with _reading(paths.journal) as journal:
        models = tuple(_models(journal, MeasuredStore(paths.measured)))
        deployments = tuple(_rows(journal, "deployments"))
        refusals = tuple(_rows(journal, "refusals"))
    with _reading(paths.spool) as spool:
        waiting = _spool(spool)
    with _reading(paths.trust) as trust:
        trusted = _trust(trust)
    return DeviceStatus(
        device=config.device.id,
        device_class=config.device.device_class,
        state_dir=str(paths.state_dir),
        running=running,
        pid=lock.owner_pid() if running else None,
        models=models,
        deployments=deployments,
        refusals=refusals,
        spool=waiting,
        trust=trusted,
        identity=_identity(config),
    )


def _identity(config: AgentConfig) -> dict[str, Any]:
    if not config.fleet.tls:
        return {}
    from agent.secure import identity_store

    found = identity_store(config).read()
    if found is None:
        return {}
    certificate = found.certificate
    return {
        "name": certificate.name.uri,
        "serial": certificate.serial,
        "not_before_s": certificate.not_before_s,
        "not_after_s": certificate.not_after_s,
    }


@contextmanager
def _reading(path: Path) -> Iterator[sqlite_utils.Database | None]:
    if not path.exists():
        yield None
        return
    database = open_database(path)
    try:
        yield database
    except sqlite3.Error as error:
        raise DeviceError(
            f"cannot read {path}: {error}. 'fleet-agent doctor' says more about it."
        ) from error
    finally:
        database.close()


def _rows(database: sqlite_utils.Database | None, table: str) -> list[dict[str, Any]]:
    if database is None or table not in database.table_names():
        return []
    return list(database[table].rows)


def _models(
    journal: sqlite_utils.Database | None, measured: MeasuredStore
) -> Iterator[InstalledModel]:
    slots = {(row["model"], row["role"]): row for row in _rows(journal, "slots")}
    held = {row["model"]: row for row in _rows(journal, "deployments") if row["phase"] == "beside"}
    for model in sorted({model for model, _ in slots}):
        active = slots.get((model, "active"), {})
        previous = slots.get((model, "previous"), {})
        digest = active.get("manifest_sha256", "")
        form = read_form(Path(measured.form_path(digest))) if digest else None
        yield InstalledModel(
            model=model,
            version=active.get("version", ""),
            bundle=active.get("bundle", ""),
            manifest_sha256=digest,
            rollout_id=active.get("rollout_id", ""),
            previous_version=previous.get("version", ""),
            previous_sha256=previous.get("manifest_sha256", ""),
            memory_bytes=measured.model_bytes(digest) if digest else None,
            saved_form=form is not None and form.kept,
            beside=_beside(held[model]) if model in held else {},
            swap=measured.swap(digest) if digest else {},
        )


def _beside(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": row["version"],
        "manifest_sha256": row["manifest_sha256"],
        "rollout_id": row["rollout_id"],
        "role": ROLES.get(row["mode"], row["mode"]),
        "traffic_bp": row["traffic_bp"],
    }


def _spool(spool: sqlite_utils.Database | None) -> dict[str, int]:
    if spool is None or "reports" not in spool.table_names():
        return {"reports": 0, "size_bytes": 0}
    [row] = spool.query("SELECT count(*) AS n, coalesce(sum(length(raw)), 0) AS size FROM reports")
    return {"reports": row["n"], "size_bytes": row["size"]}


def _trust(trust: sqlite_utils.Database | None) -> dict[str, Any]:
    versions: dict[str, int] = {}
    expires: dict[str, str] = {}
    for row in _rows(trust, "files"):
        role = str(row["name"]).removesuffix(".json").rpartition(".")[2]
        signed = json.loads(row["content"])["signed"]
        if signed["version"] >= versions.get(role, 0):
            versions[role] = signed["version"]
            expires[role] = signed["expires"]
    floors = {row["name"]: row["release"] for row in _rows(trust, "floors")}
    clock = _rows(trust, "clock")
    floor_s = clock[0]["floor_s"] if clock else 0.0
    return {"versions": versions, "expires": expires, "floors": floors, "floor_s": floor_s}
