"""A few numbers beside the trust store, by which a store that was cut short or put back from a copy is known.

Rules kept here:

* It is written durably after every save of the store, never before: a power cut between the two leaves a store that
  is newer than its witness, which is fine; the other way round is not.
* It holds what must not be forgotten when the store is lost: the floor of time and the lowest releases.
* Whoever can put back the whole state folder puts back the witness too. Against that there is no file: the time
  floor, the expiry of what is old and the next refresh from the fleet manager are what is left.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agent.adapters.durable import disk_errors, write_durable
from agent.errors import DeviceError

__all__ = ["Witness", "read_witness", "write_witness"]

_FORMAT: Final = 1
_MOST_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Witness:
    """What the store held when it was saved last: ``saves`` counts up over the life of the device.

    ``floor_s``: seconds since the epoch. ``floors``: lowest acceptable release by ``CLASS/MODEL``.
    """

    saves: int = 0
    floor_s: float = 0.0
    floors: dict[str, int] = field(default_factory=dict)


def read_witness(path: Path) -> Witness | None:
    """The witness; None when there never was one.

    Raises:
        DeviceError: it cannot be read, or is damaged.
    """
    with disk_errors("read", path):
        try:
            with path.open("rb") as stream:
                raw = stream.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return None
    try:
        found = json.loads(raw)
        if found["format"] != _FORMAT or len(raw) > _MOST_BYTES:
            raise ValueError("unknown format")
        floors = {str(name): int(release) for name, release in found["floors"].items()}
        return Witness(int(found["saves"]), float(found["floor_s"]), floors)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeviceError(f"{path} is damaged ({error})") from error


def write_witness(path: Path, witness: Witness) -> None:
    """Replace the witness durably. Raises DeviceError."""
    value = {
        "format": _FORMAT,
        "saves": witness.saves,
        "floor_s": witness.floor_s,
        "floors": dict(sorted(witness.floors.items())),
    }
    write_durable(path, json.dumps(value).encode())
