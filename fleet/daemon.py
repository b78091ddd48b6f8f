"""The fleet manager's process: the one place where its parts are made and put together.

Rules kept here: nothing is decided; parts start in the order in which they need each other and stop
in the reverse; ``run.json`` names real addresses and exists only while everything listens; when a
part that should run for ever ends, the process ends with its error, so that a supervisor notices.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import uvicorn

from fleet.api.device_server import DeviceServer, SecureListen
from fleet.api.enrol_service import EnrolService
from fleet.api.http import create_app
from fleet.api.publish import restore_bundle_rows
from fleet.api.services import Services
from fleet.api.tls import LOOK_EVERY_S, ServerTls
from fleet.artifacts.folder import FolderArtifacts
from fleet.broker_mode import parse_broker_mode
from fleet.config import (
    FleetConfig,
    Listen,
    parse_address,
    parse_grpc_listen,
    parse_http_listen,
    parse_listen,
)
from fleet.connect.targets import load_targets
from fleet.connect.webhooks import Webhooks
from fleet.errors import ConfigError, FleetError, ServerError
from fleet.home import Home
from fleet.messaging.bridge import Bridge, BrokerIdentities
from fleet.messaging.broker import Broker, EmbeddedBroker, ExternalBroker
from fleet.messaging.credentials import ManagerCredentials
from fleet.messaging.feed import PackFeed
from fleet.messaging.signatures import NoIdentities
from fleet.monitor.ingest import Ingest, IngestLimits
from fleet.monitor.retention import Pruner, Retention
from fleet.operators.desk import Operators
from fleet.operators.folder import local_token
from fleet.registry.device_keys import EnrolledKeys
from fleet.registry.devices import set_all_offline
from fleet.registry.identities import Identities, IdentityPolicy
from fleet.repository import Repository
from fleet.repository.configured import online_keys
from fleet.repository.keys import offline_folder
from fleet.rollout.check_runner import CheckRunner
from fleet.rollout.executor import Executor, ExecutorLimits
from fleet.store.engine import Store, open_store
from fleet.store.writer import Writer
from fleet.systemd import notify, watchdog_interval_s

__all__ = ["Addresses", "FleetManager", "running", "serve"]

_LOG = logging.getLogger(__name__)
RESIGN_LOOK_S: Final = 60.0  # how often to look whether metadata has to be signed again
DAY_S: Final = 86_400.0
EXPIRY_WARNING_S: Final = 14 * DAY_S
BROKER_WAIT_S: Final = 10.0  # for the first connection; after that it is tried in the background
HTTP_GRACE_S: Final = 5
_HERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- where who listens on all is found
HTTP_BACKLOG: Final = 512


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything listens. ``mqtt`` is None without a broker, ``enrolment`` without TLS."""

    http: Listen
    grpc: Listen
    mqtt: Listen | None
    tls: bool = False  # of http
    enrolment: Listen | None = None

    @property
    def api(self) -> str:
        """The address of the API, from this machine."""
        here = _HERE.get(self.http.host, self.http.host)
        return f"{'https' if self.tls else 'http'}://{Listen(here, self.http.port)}"

    def to_json(self) -> dict[str, str]:
        return {
            "http": self.api,
            "grpc": str(self.grpc),
            "mqtt": "" if self.mqtt is None else str(self.mqtt),
            "enrolment": "" if self.enrolment is None else str(self.enrolment),
        }


class _HttpServer(uvicorn.Server):
    """Signals are the daemon's business, not the web server's; and it says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class FleetManager:
    """A running fleet manager; made by ``running``."""

    def __init__(self, home: Home, config: FleetConfig) -> None:
        self.home = home
        self.config = config
        self.artifacts = FolderArtifacts(home.artifacts)
        self.repository = Repository(
            home.path, self.artifacts.manifest, online_keys(home, config.keys)
        )
        targets = load_targets(home.path, config.webhook)
        self.store: Store = open_store(home.database)
        self.writer = Writer(self.store)
        limits = config.ingest
        self.ingest = Ingest(
            self.writer, IngestLimits(limits.queued_batches, limits.commit_reports)
        )
        self.pruner = Pruner(
            self.writer,
            Retention(limits.keep_windows_days * DAY_S, limits.keep_events_days * DAY_S),
        )
        self.feed = PackFeed()
        self._publishing = asyncio.Lock()
        self._local_token = local_token(home)
        self.operators = Operators(self.store, self.writer, home.audit_head, self._local_token)
        self._tls = ServerTls(home.pki.server, home.pki.server_key) if config.http.tls else None
        self.executor = Executor(
            self.store,
            self.repository,
            self.publish,
            manifest=self.artifacts.manifest,
            limits=ExecutorLimits(
                tick_s=config.controller.tick_s,
                second_above_bp=config.operators.second_approval_above_bp,
            ),
        )
        self.webhooks = Webhooks(self.store, self.writer, targets, link=self._link)
        self.broker: Broker | None = _make_broker(config)
        self.bridge: Bridge | None = None
        self.addresses: Addresses | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.identities = self._make_identities()
        self.services = Services(
            fleet=config.fleet.name,
            store=self.store,
            repository=self.repository,
            artifacts=self.artifacts,
            ingest=self.ingest,
            feed=self.feed,
            executor=self.executor,
            webhooks=self.webhooks,
            operators=self.operators,
            publish=self.publish,
            broker=self._broker_state,
            identities=self.identities,
        )

    def _make_identities(self) -> Identities | None:
        """None without TLS: whoever is on this machine may speak."""
        if not self.config.grpc.tls:
            return None
        policy = IdentityPolicy(self.config.enrolment, self.config.tls.names)
        try:
            return Identities(
                self.store, self.writer, self.home.pki, self.config.fleet.name, policy
            )
        except FleetError:
            self.writer.close()
            self.store.close()
            raise

    def _broker_identities(self) -> BrokerIdentities | None:
        """None where the broker is on this machine and takes whoever comes. Raises ConfigError."""
        place = parse_broker_mode(self.config.broker.mode)
        if place is None or not place.tls:
            return None
        fleet = self.config.fleet.name
        ours = ManagerCredentials(self.home.pki, fleet)
        ours.load()  # what is missing is said at the start
        if self.identities is None:
            return BrokerIdentities(ours, NoIdentities())
        return BrokerIdentities(ours, EnrolledKeys(self.store, fleet, self.identities.now_s))

    async def publish(self) -> None:
        """Make the newest signed pack the one that every device gets."""
        async with self._publishing:  # an older pack must not overtake a newer one
            self.feed.set(await asyncio.to_thread(self.repository.pack))

    async def until_ended(self) -> None:
        """Wait until a part ends, which none should.

        Raises:
            ServerError: says which part, and why.
        """
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = None if task.cancelled() else task.exception()
            if isinstance(error, FleetError):
                raise error
            raise ServerError(f"{task.get_name()} ended unexpectedly: {error!r}") from error

    # --- starting and stopping, in this order -----------------------------------------------------

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Start every part; ``stack`` undoes it."""
        stack.callback(self.store.close)
        stack.callback(self.writer.close)
        await self.writer.run(set_all_offline)
        await self.operators.keep_head()
        await self.webhooks.register()  # before anything is decided, so that it is told
        restored = await asyncio.to_thread(restore_bundle_rows, self.services)
        if restored:
            _LOG.warning("%d published bundles were missing in the database: added", restored)
        left = self.repository.offline_keys()
        if left:
            _LOG.warning(
                "%d offline keys still lie in %s (%s, ...): whoever gets hold of this machine gets them too. "
                "Move each to its holder's medium",
                len(left), offline_folder(self.home.path), left[0],
            )  # fmt: skip
        await self._renew()
        await self.executor.reconcile()
        await self.publish()
        self._background(stack, "ingest", self.ingest.run())
        if self.identities is not None:
            await self.identities.keep_fresh()  # before a certificate is shown to anybody
            self._background(stack, "certificates", self.identities.run())
        grpc, enrolment = await self._start_grpc(stack)
        mqtt = await self._start_broker(stack)
        http = await self._start_http(stack)
        self._background(stack, "rollout controller", self.executor.run())
        checks = CheckRunner(self.store, self.writer, self.executor.wake)
        self._background(stack, "external checks", checks.run())
        self._background(stack, "metadata renewal", self._keep_signed())
        self._background(stack, "retention", self.pruner.run())
        if self._tls is not None:
            self._background(stack, "API certificate", _keep_certificate(self._tls))
        if self.webhooks.targets:
            self._background(stack, "webhooks", self.webhooks.run())
        interval_s = watchdog_interval_s()
        if interval_s is not None:
            self._background(stack, "watchdog", _tell_alive(interval_s))
        self.addresses = Addresses(http, grpc, mqtt, tls=self._tls is not None, enrolment=enrolment)
        stack.callback(self.home.remove_run_file)
        self.home.write_run_file(
            {
                "fleet": self.config.fleet.name,
                **self.addresses.to_json(),
                "root": str(self.home.root.absolute()),
                "pid": os.getpid(),
                "token": self._local_token,
                **({} if self._tls is None else {"ca": str(self.home.pki.server_ca.absolute())}),
            }
        )

    async def _start_grpc(self, stack: contextlib.AsyncExitStack) -> tuple[Listen, Listen | None]:
        config, secure = self.config, None
        if self.identities is not None:
            secure = SecureListen(
                self.home.pki,
                parse_address(config.enrolment.listen, "[enrolment] listen"),
                EnrolService(self.identities, config.enrolment),
            )
        listen = parse_grpc_listen(config.grpc.listen, "[grpc] listen", tls=config.grpc.tls)
        server = DeviceServer(self.services, listen, secure=secure)
        stack.push_async_callback(server.stop)
        address = await server.start()
        return address, server.enrolment

    async def _start_broker(self, stack: contextlib.AsyncExitStack) -> Listen | None:
        broker = self.broker
        if broker is None:
            return None
        stack.push_async_callback(broker.stop)
        await broker.start()
        self.bridge = Bridge(
            lambda: broker.address,
            self.config.fleet.name,
            self.feed,
            self.ingest,
            identities=self._broker_identities(),
        )
        self._background(stack, "broker connection", self.bridge.run())
        try:
            async with asyncio.timeout(BROKER_WAIT_S):
                await self.bridge.wait_connected()
        except TimeoutError:
            _LOG.error(
                "the broker at %s is not reachable: going on without, devices can use gRPC; it is "
                "tried again in the background",
                broker.address,
            )
        return Listen(broker.address.host, broker.address.port)

    async def _start_http(self, stack: contextlib.AsyncExitStack) -> Listen:
        wanted = parse_http_listen(self.config.http)
        if not wanted.is_loopback and await self.operators.tokens_there() == 0:
            raise ConfigError(
                f"[http] listen = {str(wanted)!r} reaches beyond this machine, and nobody has a token: make one with "
                f"`fleet token create NAME --role admin --home {self.home.path}`"
            )
        tls = self._tls
        listener = _listen(wanted)
        stack.callback(listener.close)
        config = uvicorn.Config(
            create_app(self.services, frozenset if tls is None else lambda: tls.names),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=HTTP_GRACE_S,
        )
        if tls is not None:
            config.load()  # it would make a context from files, and none that can be renewed
            config.ssl = tls.context
        server = _HttpServer(config)
        task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        self._tasks.add(task)

        async def stop() -> None:
            self._tasks.discard(task)
            server.should_exit = True
            await asyncio.wait({task})

        stack.push_async_callback(stop)
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait({listening, task}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        return Listen(wanted.host, listener.getsockname()[1])

    def _background(
        self, stack: contextlib.AsyncExitStack, name: str, work: Coroutine[Any, Any, None]
    ) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        async def stop() -> None:
            self._tasks.discard(task)
            task.cancel()
            await asyncio.wait({task})

        stack.push_async_callback(stop)

    # --- loops and answers ------------------------------------------------------------------------

    async def _keep_signed(self) -> None:
        while True:
            await asyncio.sleep(RESIGN_LOOK_S)
            try:
                if await self._renew():
                    await self.publish()
            except FleetError as error:
                # The next look tries again; until then devices live on what is signed.
                _LOG.error("the metadata could not be signed again: %s", error)

    async def _renew(self) -> bool:
        now_s = time.time()
        changed = await asyncio.to_thread(self.repository.resign_if_due, now_s)
        for role, left_s in self.repository.expiring(now_s, EXPIRY_WARNING_S).items():
            _LOG.warning(
                "the %s metadata expires in %.1f days: devices then accept nothing new. Sign it "
                "again: fleet key request %s",
                role, left_s / DAY_S, role,
            )  # fmt: skip
        return changed

    def _link(self) -> str:
        """Where the API is found, for links in events; "" until it listens."""
        return "" if self.addresses is None else self.addresses.api

    def _broker_state(self) -> Mapping[str, Any]:
        if self.broker is None or self.bridge is None:
            return {"mode": "none", "connected": False}
        state = {
            "mode": self.config.broker.mode,
            "address": str(self.broker.address),
            "connected": self.bridge.connected,
            "connects": self.bridge.connects,
            "pack_published": self.bridge.published_version == self.feed.version,
        }
        if isinstance(self.broker, EmbeddedBroker):
            state |= {"pid": self.broker.pid, "restarts": self.broker.restarts}
        return state


@contextlib.asynccontextmanager
async def running(home: Home, config: FleetConfig) -> AsyncIterator[FleetManager]:
    """A fleet manager that listens, for the length of the block.

    Raises:
        ConfigError: the folder, a key or an address cannot be used. ServerError: a part does not
        start.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(home.locked())
        home.remove_run_file()  # a killed process left it
        manager = FleetManager(home, config)
        await manager.start(stack)
        yield manager


async def serve(home: Home, config: FleetConfig, ready: Callable[[FleetManager], None]) -> None:
    """Run until SIGTERM or SIGINT. ``ready`` is called once everything listens.

    Raises:
        ConfigError, ServerError: as ``running``, or a part ended while it should run.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with running(home, config) as manager:
        ready(manager)
        notify(f"READY=1\nSTATUS=fleet {config.fleet.name}")
        ended = asyncio.create_task(manager.until_ended())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
        finally:
            notify("STOPPING=1")
            _LOG.info("stopping")
            for task in (ended, stopped):
                task.cancel()


async def _keep_certificate(tls: ServerTls) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.to_thread(tls.refresh)


async def _tell_alive(interval_s: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)


def _make_broker(config: FleetConfig) -> Broker | None:
    if config.broker.mode == "none":
        return None
    external = parse_broker_mode(config.broker.mode)
    if external is not None:
        return ExternalBroker(external.host, external.port, tls=external.tls)
    listen = parse_listen(config.broker.listen, "[broker] listen")
    return EmbeddedBroker(listen.host, listen.port)


def _listen(wanted: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    try:
        return socket.create_server((wanted.host, wanted.port), family=family, backlog=HTTP_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {wanted} for the API: {os.strerror(error.errno or 0)}. Is another fleet manager "
            "running? Stop it, or set [http] listen to another port"
        ) from error
