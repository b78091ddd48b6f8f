"""The devices of a fleet: what they are, what they serve, whether they are connected."""

from fleet.registry.devices import get_device, list_devices, models_of
from fleet.registry.presence import Presence, Way

__all__ = ["Presence", "Way", "get_device", "list_devices", "models_of"]
