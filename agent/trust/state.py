"""What a device remembers of the fleet's signed metadata, as one value.

Rules kept here:

* The state is a value: a refresh takes one and returns another; storing it is somebody else's work
  and happens before anything acts on it.
* Time never goes back: the floor rises with every verified timestamp, and a clock set back cannot
  revive what has expired.
* The lowest acceptable release of a model never falls, whatever is withdrawn later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from agent.trust.release import BundleRelease

__all__ = ["TrustState", "TrustStore"]


@dataclass(frozen=True, slots=True)
class TrustState:
    """Everything verified so far.

    Attributes:
        files: metadata by name: ``N.root.json`` for every root, ``timestamp.json``,
            ``snapshot.json``, ``targets.json`` and one ``ROLE.json`` for each delegated role.
        floor_s: a time that is known to be past, in seconds since the epoch.
        floors: lowest acceptable release by ``CLASS/MODEL``.
        damage: why the store that it comes from is not believed: it was cut short, or is an older copy. Only a
            refresh from the fleet manager itself mends it; "" is a store that is whole.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    floor_s: float = 0.0
    floors: Mapping[str, int] = field(default_factory=dict)
    damage: str = field(default="", compare=False)

    def trusted_now_s(self, now_s: float) -> float:
        """The time to judge by: the clock's, or the floor when the clock is behind it."""
        return max(now_s, self.floor_s)

    def with_time_known(self, known_past_s: float) -> "TrustState":
        """The same state with the floor no lower than a time that is known to be past."""
        return replace(self, floor_s=max(self.floor_s, known_past_s))

    def floors_for(self, device_class: str) -> dict[str, int]:
        """Lowest acceptable release by model name, for devices of one class."""
        prefix = f"{device_class}/"
        return {
            key.removeprefix(prefix): floor
            for key, floor in self.floors.items()
            if key.startswith(prefix)
        }

    def with_floors_raised(self, releases: Iterable[BundleRelease]) -> "TrustState":
        """The same state with each model's floor raised to the highest that a release asks for."""
        floors = dict(self.floors)
        for release in releases:
            key = f"{release.device_class}/{release.model}"
            if release.min_release > floors.get(key, 0):
                floors[key] = release.min_release
        return replace(self, floors=floors)


class TrustStore(Protocol):
    """Where the state survives a power cut. Blocking: called from a worker thread."""

    def load(self) -> TrustState:
        """The state saved last, or an empty one.

        Raises:
            DeviceError: the store cannot be read.
        """
        ...

    def save(self, state: TrustState) -> None:
        """Make the state durable, all of it or nothing, before returning.

        Raises:
            DeviceError: the store cannot be written.
        """
        ...
