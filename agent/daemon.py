"""The agent as a process: reads the configuration, puts the real adapters together, runs until told to stop.

Rules kept here:
- The composition root: no decision is made here.
- One agent a state folder. SIGTERM and SIGINT stop cleanly: the last window goes into the spool, the broker hears a
  goodbye, the model server lets requests under way end.
- Exit codes: 0 stopped, 1 failed, 2 the configuration is wrong.
"""

import argparse
import asyncio
import contextlib
import logging
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agent.adapters.clock import SystemClock
from agent.adapters.device_memory import DeviceMemory
from agent.adapters.grpc_link import GrpcLink, GrpcPieceSource
from agent.adapters.heap import share_one_heap
from agent.adapters.journal import SqliteJournal
from agent.adapters.measured import MeasuredStore
from agent.adapters.model_server import ModelServerLimits, OtherFronts, ProcessModelServer
from agent.adapters.piece_store import FilePieceStore
from agent.adapters.resources import ProcessResources
from agent.adapters.slot_store import FolderSlotStore
from agent.adapters.spool import SqliteSpool
from agent.adapters.state_lock import StateLock
from agent.adapters.systemd import Notifier
from agent.adapters.trial import ProcessTrial, TrialKeeping, TrialLimits
from agent.adapters.trust_store import SqliteTrustStore
from agent.at_rest import keep_small
from agent.config import AgentConfig, load_config, parse_broker
from agent.connections import Connections, connect
from agent.errors import AgentError, ConfigError
from agent.health.budget import BudgetLimits
from agent.health.calm import CalmLimits, Work
from agent.health.pace import PaceLimits
from agent.health.spool import Spool, SpoolLimits
from agent.inventory import read_machine
from agent.logs import set_up_logging
from agent.ports import Link
from agent.runtime.resident import give_back
from agent.state_dir import StatePaths
from agent.supervisor import Supervisor, SupervisorLimits, SupervisorPorts
from agent.trust.reading import fleet_name
from agent.trust.refresh import TrustRefresher
from agent.trust_keeper import TrustKeeperLimits, TrustPorts
from agent.trust_view import RealRefresh, read_view
from agent.update.policy import UpdateLimits
from agent.update.updater import Updater, UpdaterPorts
from agent.uplink import UplinkLimits

__all__ = ["main", "run_agent"]

log = logging.getLogger(__name__)

WORKER_THREADS: Final = 4
STATUS_EVERY_S: Final = 10.0
STOP_S: Final = 5.0
"""How long the last window may take at a stop."""


def _read_root(config: AgentConfig) -> bytes:
    """The fleet's first root, of the right fleet. Raises ConfigError."""
    path = config.fleet.root
    try:
        raw = path.read_bytes()
        fleet = fleet_name(raw)
    except OSError as error:
        raise ConfigError(
            f"cannot read [fleet] root = {path}: {error.strerror}. "
            f"Copy root.json from the fleet manager's folder to this device."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"[fleet] root = {path} is not TUF root metadata ({error}). "
            f"Copy root.json from the fleet manager's folder again."
        ) from error
    if fleet and fleet != config.fleet.name:
        raise ConfigError(
            f"[fleet] root = {path} is of fleet {fleet!r}, [fleet] name says {config.fleet.name!r}: "
            f"correct the name, or copy the right fleet's root.json."
        )
    return raw


def _limits(config: AgentConfig) -> SupervisorLimits:
    return SupervisorLimits(
        pace=PaceLimits(
            window_s=config.telemetry.window_s, cohort_window_s=config.telemetry.cohort_window_s
        ),
        uplink=UplinkLimits(fallback_after_s=config.fleet.fallback_after_s),
        trust=TrustKeeperLimits(refresh_s=config.fleet.refresh_s),
        budget=BudgetLimits(
            max_rss_bytes=config.health.max_rss_bytes,
            max_cpu_percent=config.health.max_cpu_percent,
            max_temperature_c=config.health.max_temperature_c,
            min_disk_free_bytes=config.health.min_disk_free_bytes,
            sustained_s=config.health.sustained_s,
        ),
    )


def _update_limits(config: AgentConfig) -> UpdateLimits:
    limits = UpdateLimits()
    return replace(
        limits,
        fetch=replace(limits.fetch, reserve_bytes=config.update.reserve_bytes),
        crashes=replace(
            limits.crashes,
            window_s=config.health.crash_window_s,
            max_crashes=config.health.max_crashes,
            max_crashes_alone=max(limits.crashes.max_crashes_alone, config.health.max_crashes),
        ),
        memory=replace(
            limits.memory,
            reserve_bytes=config.update.memory_reserve_bytes,
            hold_s=config.update.hold_s,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Running:
    supervisor: Supervisor
    updater: Updater
    server: ProcessModelServer
    spool: Spool
    connections: Connections


@asynccontextmanager
async def _composed(config: AgentConfig) -> AsyncIterator[_Running]:
    """The agent's parts, put together; closed in reverse order."""
    paths = StatePaths(config.device.state_dir)
    device = config.device
    boot_id = secrets.token_hex(8)
    clock = SystemClock()
    root = _read_root(config)
    async with AsyncExitStack() as stack:
        spool = SqliteSpool(
            paths.spool,
            SpoolLimits(
                max_reports=config.telemetry.spool_reports, max_bytes=config.telemetry.spool_bytes
            ),
        )
        stack.callback(spool.close)
        journal = SqliteJournal(paths.journal)
        stack.callback(journal.close)
        trust_store = SqliteTrustStore(paths.trust)
        stack.callback(trust_store.close)
        measured = MeasuredStore(paths.measured)
        server = _model_server(config, paths, measured)
        stack.push_async_callback(server.stop)
        # Before anything of gRPC begins in this process: a child is never forked from beside its threads.
        await server.start()
        log.info("models answer on %s", ", ".join(_served_on(config, server)))
        connections = connect(config)
        stack.push_async_callback(connections.close)
        channel, metadata = connections.channel, connections.metadata
        refresher = TrustRefresher(root, None, connections.known_past_s, device.device_class)
        ports = SupervisorPorts(
            clock=clock,
            links=_links(config, GrpcLink(channel, config.fleet.grpc, device.id), boot_id),
            trust=TrustPorts(
                store=trust_store,
                refresh=RealRefresh(refresher, metadata, clock, asyncio.to_thread),
                read=read_view,
                offload=asyncio.to_thread,
                clock=clock,
            ),
            spool=spool,
            server=server,
            resources=ProcessResources(paths.state_dir, lambda: server.state.pid),
        )
        slots = FolderSlotStore(paths.slots, measured)
        provider = config.serving.providers[0]
        machine = read_machine(device.id, device.device_class, device.labels, provider)
        supervisor = Supervisor(ports, machine, boot_id, _limits(config))
        updater = Updater(
            UpdaterPorts(
                journal=journal,
                pieces=FilePieceStore(paths.pieces),
                slots=slots,
                source=GrpcPieceSource(channel, config.fleet.grpc, device.id),
                metadata=metadata,
                trial=ProcessTrial(
                    TrialLimits(wall_s=config.update.trial_timeout_s),
                    providers=config.serving.providers,
                    keeping=TrialKeeping(
                        measured, config.update.reserve_bytes, offload=asyncio.to_thread
                    ),
                ),
                server=server,
                clock=clock,
                free_bytes=slots.free_bytes,
                memory=DeviceMemory(measured),
            ),
            _update_limits(config),
            supervisor.deployment_event,
        )
        yield _Running(supervisor, updater, server, spool, connections)


def _model_server(
    config: AgentConfig, paths: StatePaths, measured: MeasuredStore
) -> ProcessModelServer:
    return ProcessModelServer(
        config.serving.listen,
        ModelServerLimits(start_s=config.update.start_timeout_s, rest_s=config.health.rest_s),
        providers=config.serving.providers,
        form_of=measured.form_path,
        fronts=OtherFronts(
            config.serving.http,
            config.serving.grpc_unix,
            config.serving.http_unix,
            config.serving.grpc_front,
        ),
        reads_only=(paths.slots, paths.measured) if config.serving.confine else (),
    )


def _say_if_not_confined(config: AgentConfig, server: ProcessModelServer) -> None:
    parts = {"files_confined": "files", "calls_confined": "system calls"}
    missing = [part for name, part in parts.items() if not server.confined.get(name)]
    if config.serving.confine and missing:
        log.warning(
            "this kernel cannot confine the model server's %s; 'fleet-agent doctor' says more",
            " and ".join(missing),
        )


def _served_on(config: AgentConfig, server: ProcessModelServer) -> list[str]:
    places = [
        server.address,
        server.http_address,
        config.serving.grpc_unix,
        config.serving.http_unix,
    ]
    return [place for place in places if place]


def _links(config: AgentConfig, grpc_link: Link, boot_id: str) -> list[Link]:
    if not config.fleet.mqtt:
        return [grpc_link]
    # Only where it is used: the library and what it brings take more than a megabyte.
    from agent.adapters.credentials import DeviceCredentials
    from agent.adapters.mqtt_link import MqttLink

    broker = parse_broker(config.fleet.mqtt, "[fleet] mqtt")
    fleet, device_id = config.fleet.name, config.device.id
    identity = None
    if broker.tls:
        paths = StatePaths(config.device.state_dir).identity
        identity = DeviceCredentials(paths, fleet, device_id)
    place = broker.host, broker.port
    return [MqttLink(place, fleet, device_id, boot_id, identity=identity), grpc_link]


async def run_agent(config: AgentConfig, stop: asyncio.Event) -> None:
    """Run until ``stop`` is set.

    Raises:
        AgentError: the agent cannot start.
        ExceptionGroup: a part of it failed for good.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKER_THREADS))
    notifier = Notifier()
    with StateLock(config.device.state_dir):
        async with _composed(config) as running:
            _say_if_not_confined(config, running.server)
            work = asyncio.create_task(running.supervisor.run(running.updater))
            said = asyncio.create_task(_speak(notifier, running))
            small = asyncio.create_task(_keep_small(running, config.health.rest_s))
            known = asyncio.create_task(running.connections.keep())
            stopped = asyncio.create_task(stop.wait())
            log.info("agent of device %s started", config.device.id)
            try:
                await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
                notifier.stopping()
                if not work.done():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(STOP_S):
                            await running.supervisor.last_window()
            finally:
                for task in (work, said, small, known, stopped):
                    task.cancel()
                await asyncio.wait((work, said, small, known, stopped))
            if not work.cancelled():
                work.result()
            _mark_stopped(running.updater)
    log.info("agent of device %s stopped", config.device.id)


def _mark_stopped(updater: Updater) -> None:
    """Only reached by an orderly stop, and once nothing works any more."""
    try:
        updater.stopped()
    except AgentError as error:
        log.error("%s; the next start will take this stop for a crash", error)


async def _speak(notifier: Notifier, running: _Running) -> None:
    """Tell the service manager when all is served again, that the loop still turns, and what it is about."""
    await running.supervisor.resumed.wait()
    notifier.ready(_status(running))
    every_s = notifier.watchdog_s or STATUS_EVERY_S
    while True:
        notifier.alive()
        notifier.status(_status(running))
        await asyncio.sleep(min(every_s, STATUS_EVERY_S))


async def _keep_small(running: _Running, rest_s: float) -> None:
    """Once all is served again: give memory back whenever the agent is at rest."""
    if rest_s <= 0:
        return
    await running.supervisor.resumed.wait()

    def work() -> Work:
        served = tuple(it.manifest_sha256 for it in running.updater.served())
        return Work(0, served, bool(running.updater.deployments()))

    limits = CalmLimits.after(rest_s)
    await keep_small(work, lambda: asyncio.to_thread(give_back), SystemClock(), limits)


def _status(running: _Running) -> str:
    served = ", ".join(f"{it.model} {it.version}" for it in running.updater.served()) or "no model"
    under_way = ", ".join(
        f"{it.bundle} in {it.phase.value}" for it in running.updater.deployments()
    )
    links = ", ".join(running.supervisor.uplink.connected) or "no link"
    waiting = running.spool.stats().reports
    parts = [f"serving {served}", under_way, f"connected by {links}", f"{waiting} reports wait"]
    return "; ".join(part for part in parts if part)


async def _main(config: AgentConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run_agent(config, stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of ``fleet-agent run``. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="fleet-agent run", description="Run the agent.")
    parser.add_argument("--config", "-c", required=True, type=Path, help="the agent's TOML file")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    share_one_heap()
    set_up_logging(config.log.level, config.log.format, config.device.id)
    try:
        asyncio.run(_main(config))
    except ConfigError as error:
        log.error("%s", error)
        return 2
    except AgentError as error:
        log.error("%s", error)
        return 1
    except Exception:
        log.exception("the agent failed and ends")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
