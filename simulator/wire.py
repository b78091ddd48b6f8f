"""What the connections of a world share: addresses, limits, turns, and counters of what went over them."""

import asyncio
from dataclasses import dataclass, field

from agent.adapters.reconnect import ReconnectLimits
from fleet.messaging import ClientLimits
from simulator.addresses import Endpoint
from simulator.chance import rng
from simulator.scenario import Scenario

__all__ = ["NetworkLimits", "Traffic", "Wire"]


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """What one world may hold open at once."""

    keep_alive_s: int = 120
    inbox_messages: int = 8
    open_connects: int = 64  # MQTT connects under way at once
    open_fetches: int = 32  # gRPC connections that fetch pieces at once; the others wait
    open_slow_fetches: int = 1024  # the same where the scenario says how slow the link is
    call_timeout_s: float = 30.0
    message_bytes: int = 1024 * 1024
    reconnect: ReconnectLimits = field(default_factory=ReconnectLimits)
    mqtt: ClientLimits = field(
        default_factory=lambda: ClientLimits(inflight=4, queued_messages=8, connect_timeout_s=30.0)
    )


@dataclass(slots=True)
class Traffic:
    """What went over the wire, all devices together."""

    connected: int = 0
    connected_peak: int = 0
    connects: int = 0
    cuts: int = 0
    reports_sent: int = 0
    reports_lost: int = 0
    reports_silenced: int = 0
    acks: int = 0
    packs: int = 0
    bytes_fetched: int = 0
    calls: int = 0

    def came(self) -> None:
        self.connects += 1
        self.connected += 1
        self.connected_peak = max(self.connected_peak, self.connected)


class Wire:
    """What the connections of a world share: addresses, limits, counters and turns."""

    __slots__ = (
        "connects",
        "fetches",
        "fleet",
        "grpc",
        "jitter",
        "limits",
        "mqtt",
        "scenario",
        "traffic",
    )

    def __init__(
        self, fleet: str, mqtt: Endpoint, grpc: Endpoint, scenario: Scenario, limits: NetworkLimits
    ) -> None:
        self.fleet = fleet
        self.mqtt = mqtt
        self.grpc = grpc
        self.scenario = scenario
        self.limits = limits
        self.traffic = Traffic()
        self.connects = asyncio.Semaphore(limits.open_connects)
        slow = scenario.network.piece_bytes_per_s > 0
        self.fetches = asyncio.Semaphore(limits.open_slow_fetches if slow else limits.open_fetches)
        self.jitter = rng(scenario.devices.seed, "reconnect")

    def grpc_options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self.limits.message_bytes),
            ("grpc.enable_http_proxy", 0),
            # Without it all channels of a process would share one connection.
            ("grpc.use_local_subchannel_pool", 1),
        ]
