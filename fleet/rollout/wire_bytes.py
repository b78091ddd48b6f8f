"""How many bytes a rollout sends, before it does. Pure.

Rules kept here: a device fetches the pieces it does not have, and it is taken to have those of the
bundle it serves; what it may have kept of others is not counted, so this is the most, not the least.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.bundle import Manifest

__all__ = ["Fetch", "WireBytes", "wire_bytes"]


@dataclass(frozen=True, slots=True)
class Fetch:
    """``devices`` that serve ``bundle`` ("" for none, or one that is not known) fetch this each."""

    bundle: str
    devices: int
    each_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"bundle": self.bundle, "devices": self.devices, "each_bytes": self.each_bytes}


@dataclass(frozen=True, slots=True)
class WireBytes:
    """What each group of devices fetches; ``total_bytes`` of all of them."""

    fetches: tuple[Fetch, ...]

    @property
    def total_bytes(self) -> int:
        return sum(fetch.devices * fetch.each_bytes for fetch in self.fetches)

    def to_json(self) -> dict[str, Any]:
        fetches = [fetch.to_json() for fetch in self.fetches]
        return {"total_bytes": self.total_bytes, "fetches": fetches}


def wire_bytes(
    manifest: Manifest, sha256: str, serving: Sequence[str], manifests: Mapping[str, Manifest]
) -> WireBytes:
    """What the devices would fetch.

    Args:
        manifest: of the new bundle; ``sha256`` is its digest.
        serving: for each device the manifest digest of what it serves; "" for nothing.
        manifests: those of the bundles that are served, by digest, as far as they are known.
    """
    groups: Counter[tuple[str, int]] = Counter()
    for served, devices in Counter(serving).items():
        old = manifests.get(served)
        has = {piece.sha256 for piece in old.pieces()} if old is not None else set()
        missing = sum(piece.size for piece in manifest.pieces() if piece.sha256 not in has)
        each = 0 if served == sha256 else missing
        groups[(old.path if old is not None else "", each)] += devices
    ordered = sorted(groups.items(), key=lambda item: (-item[1], item[0]))
    return WireBytes(tuple(Fetch(path, devices, each) for (path, each), devices in ordered))
