"""``fleet-agent enroll``: make keys, ask for a certificate with a token, keep it.

Rules kept here: the configuration says who this device is, the token only that it may say so; the state folder is
locked meanwhile, so no agent runs beside it; run again it goes on where it stopped, and where the certificate in
place works there is nothing to do.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.adapters.durable import write_durable
from agent.adapters.enrol_link import EnrolLink, Renewals, fetch_server_ca
from agent.adapters.grpc_link import channel_options
from agent.adapters.state_lock import StateLock
from agent.config import AgentConfig, parse_any_address
from agent.errors import AgentError, ConfigError, LinkError
from agent.identity import DeviceCertificate, IdentityStore
from agent.identity.enrol import EnrolAnswer, enrol
from agent.secure import identity_store, open_secure_channel
from protos.identity import Token

__all__ = ["Enrolled", "Wish", "enroll_device"]

WAIT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line says. ``root``: a root.json to put where the configuration wants it; None: it is there."""

    server: str
    token: str
    root: Path | None = None
    wait_s: float = WAIT_S


@dataclass(frozen=True, slots=True)
class Enrolled:
    """``used``: the fleet manager has seen the certificate at [fleet] grpc; "" or why not yet."""

    certificate: DeviceCertificate
    not_yet: str


def enroll_device(config: AgentConfig, wish: Wish, say: Callable[[str], None]) -> Enrolled:
    """Enrol this device; ``say`` is told while an operator is waited for.

    Raises:
        ConfigError: the configuration, the token or root.json is not one to enrol with.
        EnrolmentRefusedError: the fleet manager said no, or is another one. LinkError: nobody answers, or nobody
            accepted the device in time. DeviceError: the disk failed, or an agent runs in the state folder.
    """
    if not config.fleet.tls:
        raise ConfigError(
            "[fleet] tls is false, so a certificate would not be shown to anybody: set it to true, and [fleet] grpc "
            "to the fleet manager's address"
        )
    try:
        token = Token.parse(wish.token)
    except ValueError as error:
        raise ConfigError(
            f"--token is not a token of `fleet device token create`: {error}"
        ) from error
    address = parse_any_address(wish.server, "--server")
    with StateLock(config.device.state_dir):
        if wish.root is not None:
            _put_root(wish.root, config.fleet.root)
        store = identity_store(config)
        server_ca = fetch_server_ca(address, token.server_sha256)
        store.keep_server(server_ca, wish.server)
        return asyncio.run(_enrol(config, wish, store, server_ca, say))


async def _enrol(
    config: AgentConfig,
    wish: Wish,
    store: IdentityStore,
    server_ca: bytes,
    say: Callable[[str], None],
) -> Enrolled:
    present = store.open_identity()
    if present is not None and not await _confirm(config):
        return Enrolled(present.certificate, "")
    link = EnrolLink(wish.server, server_ca, channel_options(None))
    who = (Token.parse(wish.token).secret, config.device.id, config.device.device_class)

    async def pending(answer: EnrolAnswer) -> None:
        say(answer.reason)
        await asyncio.sleep(answer.retry_after_s)

    try:
        async with asyncio.timeout(wish.wait_s):
            certificate = await enrol(store, link, who, pending)
    except TimeoutError as error:
        raise LinkError(
            f"nobody accepted this device within {wish.wait_s:.0f} s: run the same command again once somebody has"
        ) from error
    return Enrolled(certificate, await _confirm(config))


async def _confirm(config: AgentConfig) -> str:
    """Show the certificate once; why that was not possible, for it is no failure: `run` does it as well."""
    try:
        channel = open_secure_channel(config)
    except AgentError as error:
        return str(error)
    try:
        await Renewals(channel, config.fleet.grpc, None).confirm(config.device.id)
    except AgentError as error:
        return str(error)
    finally:
        await channel.close()
    return ""


def _put_root(source: Path, target: Path) -> None:
    try:
        given = source.read_bytes()
        present = target.read_bytes() if target.exists() else given
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    if present != given:
        raise ConfigError(
            f"[fleet] root = {target} is there and differs from {source}: it is what this device trusts before "
            f"anything else, so it is not replaced. Remove it first, if that is meant"
        )
    if not target.exists():
        write_durable(target, given, mode=0o644)
