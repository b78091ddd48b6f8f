"""Which devices are connected, by which way.

Rules kept here: a device is online while at least one way to it is up, so leaving gRPC because MQTT
came back does not look like going away. In memory: after a restart every device announces itself
again.
"""

from enum import Enum

__all__ = ["Presence", "Way"]


class Way(Enum):
    """How a device reaches the fleet manager."""

    MQTT = "mqtt"
    GRPC = "grpc"


class Presence:
    """Counts the open ways to each device."""

    def __init__(self) -> None:
        self._ways: dict[str, frozenset[Way]] = {}

    def changed(self, device_id: str, way: Way, up: bool) -> bool | None:
        """Note that a way opened or closed; the device's new state, None when it is as it was."""
        before = self._ways.get(device_id, frozenset())
        after = before | {way} if up else before - {way}
        if after:
            self._ways[device_id] = after
        else:
            self._ways.pop(device_id, None)
        if bool(after) == bool(before):
            return None
        return bool(after)

    def online(self, device_id: str) -> bool:
        return device_id in self._ways
