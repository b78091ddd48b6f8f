"""Connections on which this device shows its certificate.

Rules kept here: a device without a certificate, or with another device's, does not start; a renewed certificate
reaches every connection, and no call is lost by it.
"""

from agent.adapters.clock import SystemClock
from agent.adapters.enrol_link import EnrolLink, Renewals
from agent.adapters.grpc_link import channel_options
from agent.adapters.identity_disk import IdentityDisk
from agent.adapters.tls_channel import RenewableChannel, RenewableSyncChannel, TlsMaterial
from agent.config import AgentConfig
from agent.errors import ConfigError
from agent.identity import IdentityInUse, IdentityKeeper, IdentityStore, NotEnrolledError
from agent.state_dir import StatePaths

__all__ = ["connect_securely", "identity_store", "open_secure_channel"]


def identity_store(config: AgentConfig) -> IdentityStore:
    """Where this device's keys and certificates lie."""
    return IdentityStore(StatePaths(config.device.state_dir).identity, IdentityDisk())


def connect_securely(
    config: AgentConfig,
) -> tuple[RenewableChannel, RenewableSyncChannel, IdentityKeeper]:
    """Channels, and who renews the certificate that is shown on them.

    Raises:
        NotEnrolledError: there is no certificate. ConfigError: it is of another device.
        DeviceError: keys or certificate cannot be read.
    """
    address, options = config.fleet.grpc, channel_options(None)
    store = identity_store(config)
    identity = _require(store.open_identity(), config)
    channel = RenewableChannel(address, options, _material(identity))
    sync_channel = RenewableSyncChannel(address, options, _material(identity))

    async def changed(renewed: IdentityInUse) -> None:
        await channel.renew(_material(renewed))
        sync_channel.renew(_material(renewed))

    enrolled_at = store.enrolled_at()
    lapsed = EnrolLink(enrolled_at, identity.server_ca, options) if enrolled_at else None
    renewals = Renewals(channel, address, lapsed)
    keeper = IdentityKeeper(store, identity, renewals, SystemClock(), changed)
    return channel, sync_channel, keeper


def open_secure_channel(config: AgentConfig) -> RenewableChannel:
    """One channel; nothing on the disk is changed. Raises as ``connect_securely``."""
    identity = _require(identity_store(config).read(), config)
    return RenewableChannel(config.fleet.grpc, channel_options(None), _material(identity))


def _require(identity: IdentityInUse | None, config: AgentConfig) -> IdentityInUse:
    if identity is None:
        raise NotEnrolledError(str(StatePaths(config.device.state_dir).identity.folder))
    name = identity.certificate.name
    device = config.device
    if (name.device_id, name.device_class) != (device.id, device.device_class):
        raise ConfigError(
            f"this device is enrolled as {name.device_id} of class {name.device_class}, the configuration says "
            f"{device.id} of class {device.device_class}: correct [device], or enrol it anew"
        )
    return identity


def _material(identity: IdentityInUse) -> TlsMaterial:
    return TlsMaterial(identity.server_ca, identity.key_pem, identity.certificate.pem)
