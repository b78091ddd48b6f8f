"""How this device reaches the fleet manager over gRPC: plainly on this machine, or with its certificate.

Rules kept here: what TLS needs is imported where it is used, so that an agent without it stays small.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.adapters.grpc_link import GrpcLimits, GrpcMetadataSource, grpc_channel
from agent.built import BUILT_S
from agent.config import AgentConfig

if TYPE_CHECKING:
    from agent.identity import IdentityKeeper

__all__ = ["Connections", "connect", "open_channel"]


@dataclass(frozen=True, slots=True)
class Connections:
    """``keeper``: renews the certificate; None where the device shows none."""

    channel: Any
    metadata: GrpcMetadataSource
    keeper: "IdentityKeeper | None" = None

    def known_past_s(self) -> float:
        """A time that has passed, whatever the clock says: when this agent was built, and its certificate began.
        Seconds since the epoch."""
        return BUILT_S if self.keeper is None else max(BUILT_S, self.keeper.not_before_s)

    async def close(self) -> None:
        self.metadata.close()
        await self.channel.close()

    async def keep(self) -> None:
        """Renew the certificate in time until cancelled; returns at once where there is none."""
        if self.keeper is not None:
            await self.keeper.run()


def connect(config: AgentConfig) -> Connections:
    """Channels that connect when they are first used.

    Raises:
        NotEnrolledError: the device is to show a certificate and has none.
        DeviceError: its keys or certificate cannot be read.
    """
    if config.fleet.tls:
        from agent.secure import connect_securely

        channel, sync_channel, keeper = connect_securely(config)
        metadata = GrpcMetadataSource(config.fleet.grpc, None, sync_channel)
        return Connections(channel, metadata, keeper)
    return Connections(grpc_channel(config.fleet.grpc), GrpcMetadataSource(config.fleet.grpc))


def open_channel(config: AgentConfig, limits: GrpcLimits | None = None) -> Any:
    """One channel for a single question; what is on the disk stays as it is.

    Raises:
        NotEnrolledError, DeviceError: as ``connect``.
    """
    if config.fleet.tls:
        from agent.secure import open_secure_channel

        return open_secure_channel(config)
    return grpc_channel(config.fleet.grpc, limits)
