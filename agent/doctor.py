"""What keeps this device from working, checked from outside the running agent, each finding with what to do.

Rules kept here:
- A check never raises, never changes anything and never disturbs a running agent.
- FAIL: the agent cannot do its work. WARN: it can, but not for long or not fully.
- Heavy libraries are imported in the check that needs them; onnxruntime only in a child.
"""

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from agent.adapters.state_lock import StateLock
from agent.config import AgentConfig, BrokerAddress, parse_broker
from agent.errors import AgentError, LinkError
from agent.state_dir import StatePaths

__all__ = ["Finding", "Level", "examine"]

ONNXRUNTIME_TIMEOUT_S: Final = 60
REACH_TIMEOUT_S: Final = 5.0
CLOCK_SKEW_S: Final = 60.0
ROOT_WARN_S: Final = 30 * 86400.0
_KEPT_FROM: Final = {
    "network_isolated": "an empty network namespace or the filter of system calls",
    "files_confined": "Landlock",
    "calls_confined": "the filter of system calls",
    "privileges_dropped": "dropped privileges",
}


class Level(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """``advice``: what to do; empty when all is well."""

    check: str
    level: Level
    text: str
    advice: str = ""


def examine(config: AgentConfig) -> Iterator[Finding]:
    """Every check, one after another, as each is done."""
    for name, check in _CHECKS.items():
        try:
            yield from check(config)
        except (AgentError, OSError) as error:
            yield Finding(name, Level.FAIL, str(error), "see the message")


def _state_dir(config: AgentConfig) -> Iterator[Finding]:
    folder = config.device.state_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        yield Finding(
            "state folder",
            Level.FAIL,
            f"{folder} cannot be written: {error.strerror}",
            "run as the agent's user, or set [device] state_dir to a folder it may write",
        )
        return
    held = StateLock(folder).is_held()
    yield Finding(
        "state folder", Level.OK, f"{folder} is writable, {'an' if held else 'no'} agent runs in it"
    )


def _disk(config: AgentConfig) -> Iterator[Finding]:
    from agent.adapters.resources import disk_free_bytes

    free = disk_free_bytes(config.device.state_dir)
    reserve = config.update.reserve_bytes
    text = f"{free // 1024**2} MiB free, {reserve // 1024**2} MiB of it stay free"
    if free <= reserve:
        yield Finding("disk", Level.FAIL, text, "free some space: no bundle can be fetched")
    elif free <= 2 * reserve:
        yield Finding("disk", Level.WARN, text, "free some space before the next bundle comes")
    else:
        yield Finding("disk", Level.OK, text)


def _root(config: AgentConfig) -> Iterator[Finding]:
    path = config.fleet.root
    advice = "copy root.json from the fleet manager's folder again"
    try:
        raw = path.read_bytes()
        signed = json.loads(raw)["signed"]
        if signed["_type"] != "root":
            raise ValueError(f"it is a {signed['_type']} file")
        expires = datetime.fromisoformat(signed["expires"])
    except OSError as error:
        yield Finding("root.json", Level.FAIL, f"cannot read {path}: {error.strerror}", advice)
        return
    except (ValueError, KeyError, TypeError) as error:
        yield Finding("root.json", Level.FAIL, f"{path} is not TUF root metadata: {error}", advice)
        return
    fleet = str(signed.get("x-muster-fleet", ""))
    if fleet and fleet != config.fleet.name:
        yield Finding(
            "root.json",
            Level.FAIL,
            f"{path} is of fleet {fleet!r}, the configuration says {config.fleet.name!r}",
            "correct [fleet] name, or copy the right fleet's root.json",
        )
        return
    # An expired first root is fine as long as the fleet offers newer ones: the chain is followed.
    left_s = (expires - datetime.now(tz=UTC)).total_seconds()
    text = f"{path} is root version {signed['version']}, valid until {expires:%Y-%m-%d}"
    if left_s < ROOT_WARN_S:
        yield Finding("root.json", Level.WARN, text, "see that the fleet manager has a newer root")
    else:
        yield Finding("root.json", Level.OK, text)


def _databases(config: AgentConfig) -> Iterator[Finding]:
    from agent.status import open_database

    for path in StatePaths(config.device.state_dir).databases:
        if not path.exists():
            yield Finding("databases", Level.OK, f"{path.name} does not exist yet")
            continue
        try:
            database = open_database(path)
            answers = [row[0] for row in database.execute("PRAGMA quick_check").fetchall()]
            database.close()
        except Exception as error:  # noqa: BLE001 (whatever SQLite says about a file, it is the finding)
            answers = [str(error)]
        if answers == ["ok"]:
            yield Finding("databases", Level.OK, f"{path.name} is sound")
        else:
            yield Finding(
                "databases",
                Level.FAIL,
                f"{path.name} is damaged: {answers[0]}",
                f"stop the agent and move {path} away; it begins anew and reports again",
            )


def _identity(config: AgentConfig) -> Iterator[Finding]:
    from agent.secure import identity_store

    if not config.fleet.tls:
        yield Finding("identity", Level.OK, "none is shown: [fleet] tls is false")
        return
    found = identity_store(config).read()
    again = "run `fleet-agent enroll` with a token from `fleet device token create`"
    if found is None:
        yield Finding("identity", Level.FAIL, "this device is not enrolled", again)
        return
    certificate = found.certificate
    until = datetime.fromtimestamp(certificate.not_after_s, UTC)
    text = (
        f"{certificate.name.uri}, certificate {certificate.serial} until {until:%Y-%m-%d %H:%M} UTC"
    )
    if time.time() < certificate.not_before_s:
        advice = "set the clock: it is behind the beginning of this device's own certificate"
        yield Finding("identity", Level.WARN, text, advice)
    elif time.time() >= certificate.not_after_s:
        advice = (
            "see that the fleet manager is reachable: the agent renews it with its identity key"
        )
        yield Finding("identity", Level.WARN, f"{text}: expired", advice)
    else:
        yield Finding("identity", Level.OK, text)


def _grpc(config: AgentConfig) -> Iterator[Finding]:
    from agent.adapters.grpc_link import GrpcLimits, GrpcLink
    from agent.connections import open_channel
    from agent.inventory import agent_version

    address = config.fleet.grpc

    async def ask() -> tuple[str, float]:
        channel = open_channel(config)
        try:
            limits = GrpcLimits(call_timeout_s=REACH_TIMEOUT_S)
            reply = await GrpcLink(channel, address, config.device.id, limits).hello(
                agent_version()
            )
            return reply.fleet, reply.server_unix_ms / 1000
        finally:
            await channel.close()

    try:
        fleet, server_s = asyncio.run(ask())
    except AgentError as error:
        yield Finding(
            "fleet manager",
            Level.FAIL,
            str(error),
            "start 'fleet serve', or correct [fleet] grpc; what is installed is served meanwhile",
        )
        return
    if fleet != config.fleet.name:
        yield Finding(
            "fleet manager",
            Level.FAIL,
            f"{address} serves fleet {fleet!r}, the configuration says {config.fleet.name!r}",
            "correct [fleet] name or [fleet] grpc",
        )
    else:
        yield Finding("fleet manager", Level.OK, f"fleet {fleet} answers at {address}")
    skew_s = abs(time.time() - server_s)
    if server_s and skew_s > CLOCK_SKEW_S:
        yield Finding(
            "clock",
            Level.WARN,
            f"this clock and the fleet manager's differ by {skew_s:.0f} s",
            "set up time synchronisation: signed metadata expires by the clock",
        )
    else:
        yield Finding("clock", Level.OK, "within a minute of the fleet manager's")


def _broker(config: AgentConfig) -> Iterator[Finding]:
    import aiomqtt

    if not config.fleet.mqtt:
        yield Finding("broker", Level.OK, "none configured: gRPC alone")
        return
    broker = parse_broker(config.fleet.mqtt, "[fleet] mqtt")
    if broker.tls:
        yield _broker_over_tls(config, broker)
        return

    async def connect() -> None:
        # A name of its own: the agent's would throw the running agent off the broker.
        client = aiomqtt.Client(
            broker.host,
            broker.port,
            identifier=f"doctor-{secrets.token_hex(6)}",
            protocol=aiomqtt.ProtocolVersion.V5,
            timeout=REACH_TIMEOUT_S,
        )
        async with client:
            pass

    try:
        asyncio.run(connect())
    except (aiomqtt.MqttError, OSError, ValueError) as error:
        yield Finding(
            "broker",
            Level.WARN,
            f"no MQTT 5 broker at {config.fleet.mqtt}: {error}",
            'start it, correct [fleet] mqtt, or set it to "" to use gRPC alone',
        )
        return
    yield Finding("broker", Level.OK, f"answers at {config.fleet.mqtt}")


def _broker_over_tls(config: AgentConfig, broker: BrokerAddress) -> Finding:
    """As far as TLS goes: a session under the device's name would throw the running agent off the broker."""
    from agent.adapters.credentials import DeviceCredentials

    paths = StatePaths(config.device.state_dir).identity
    try:
        context = DeviceCredentials(paths, config.fleet.name, config.device.id).load().tls
        with (
            socket.create_connection((broker.host, broker.port), REACH_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=broker.host),
        ):
            pass
    except (LinkError, OSError, ValueError) as error:
        return Finding(
            "broker",
            Level.WARN,
            f"no broker over TLS at {config.fleet.mqtt}: {error}",
            'start it, correct [fleet] mqtt, enrol this device, or set it to "" to use gRPC alone',
        )
    return Finding("broker", Level.OK, f"answers over TLS at {config.fleet.mqtt}")


def _onnxruntime(_config: AgentConfig) -> Iterator[Finding]:
    from agent.runtime.child import child_environment, describe_exit

    code = "import onnxruntime; print(onnxruntime.__version__)"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=ONNXRUNTIME_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding(
            "onnxruntime",
            Level.FAIL,
            f"not loaded within {ONNXRUNTIME_TIMEOUT_S} s",
            "see what keeps the machine busy",
        )
        return
    if done.returncode == 0:
        yield Finding("onnxruntime", Level.OK, f"version {done.stdout.strip()} loads")
        return
    last = (done.stderr.strip().splitlines() or [describe_exit(done.returncode)])[-1]
    yield Finding(
        "onnxruntime", Level.FAIL, f"cannot be loaded: {last}", "install muster-edge again"
    )


def _confinement(config: AgentConfig) -> Iterator[Finding]:
    """What this kernel lets a trial give up, found by giving it up in a child."""
    from agent.runtime.child import child_command, child_environment

    done = subprocess.run(
        child_command("agent.runtime.confine"),
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=ONNXRUNTIME_TIMEOUT_S,
        check=False,
    )
    try:
        found = json.loads(done.stdout)
        missing = [name for measure, name in _KEPT_FROM.items() if not found[measure]]
    except (ValueError, KeyError, TypeError):
        text = f"cannot be tried: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}"
        yield Finding("confinement", Level.FAIL, text, "install muster-edge again")
        return
    if not config.serving.confine:
        missing.append("[serving] confine, which is off")
    if missing:
        yield Finding(
            "confinement",
            Level.WARN,
            f"models under trial or serving are not kept in by: {', '.join(missing)}",
            "a kernel from 5.13 on with Landlock and seccomp has all of it; bundles are tried all the same",
        )
    else:
        yield Finding(
            "confinement", Level.OK, "models reach no file, program or network but their own"
        )


def _slots(config: AgentConfig) -> Iterator[Finding]:
    from agent.adapters.slot_store import FolderSlotStore
    from agent.status import read_status

    models = read_status(config).models
    if not models:
        yield Finding("slots", Level.OK, "no bundle is installed yet")
        return
    slots = FolderSlotStore(StatePaths(config.device.state_dir).slots)
    for model in models:
        for role, digest in (
            ("active", model.manifest_sha256),
            ("previous", model.previous_sha256),
        ):
            if not digest:
                continue
            try:
                slots.verify(digest)
            except AgentError as error:
                level = Level.FAIL if role == "active" else Level.WARN
                yield Finding(
                    "slots",
                    level,
                    f"{role} bundle of {model.model}: {error}",
                    "check the disk; the agent fetches the bundle again when a rollout names it",
                )
            else:
                yield Finding("slots", Level.OK, f"{role} bundle of {model.model} is unaltered")


_CHECKS: Final[dict[str, Callable[[AgentConfig], Iterator[Finding]]]] = {
    "state folder": _state_dir,
    "disk": _disk,
    "root.json": _root,
    "databases": _databases,
    "identity": _identity,
    "fleet manager": _grpc,
    "broker": _broker,
    "onnxruntime": _onnxruntime,
    "confinement": _confinement,
    "slots": _slots,
}
