"""What a decision leaves behind, and the same decision made again from it. Pure.

Rules kept here: hashes are over canonical bytes (lengths, then little-endian numbers), so that
equal values have equal hashes everywhere; numbers are written so that reading gives the same bits;
an audit recomputes the look and lists every difference, and no difference is equality.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Final

import numpy as np

from fleet.rollout.gate.look import look
from fleet.rollout.gate.result import LookResult
from fleet.rollout.gate.ring import Counts, Ring, State

__all__ = ["RECORD_FORMAT", "Look", "as_json", "canonical", "hashes", "record", "replay"]

RECORD_FORMAT: Final = 1

Look = Callable[[Ring, State, Counts, int], tuple[LookResult, State]]


def hashes(ring: Ring, counts: Counts) -> dict[str, str]:
    """SHA-256 of what went into a look: pool, cohort, baseline, counts; hexadecimal."""
    strata = [ring.stratum_names[index] for index in ring.strata.tolist()]
    pool = list(zip(ring.device_ids, strata, strict=True))
    cohort = [device for device, chosen in zip(ring.device_ids, ring.cohort, strict=True) if chosen]
    baseline = {
        name: {"p": one.p, "mu": one.mu, "kappa": one.kappa, "known": one.known}
        for name, one in ring.baseline.items()
    }
    given = {
        "bad": counts.bad,
        "total": counts.total,
        "level": counts.level,
        "reported": counts.reported,
    }
    parts: dict[str, Any] = {"pool": pool, "cohort": cohort, "baseline": baseline, "counts": given}
    return {name: hashlib.sha256(canonical(part)).hexdigest() for name, part in parts.items()}


def canonical(value: Any) -> bytes:
    """The same bytes for the same value on every machine.

    Raises:
        TypeError: a kind of value that is not counted here.
    """
    if isinstance(value, np.ndarray):
        flat = np.ascontiguousarray(value)
        data = flat.astype(flat.dtype.newbyteorder("<")).tobytes()
        return _framed(b"a", f"{flat.dtype.kind}{flat.dtype.itemsize}{flat.shape}".encode() + data)
    if isinstance(value, Mapping):
        return _framed(
            b"m", b"".join(canonical(key) + canonical(value[key]) for key in sorted(value))
        )
    if isinstance(value, list | tuple):
        return _framed(b"l", b"".join(canonical(item) for item in value))
    if value is None or isinstance(value, bool | int | float | str):
        text = float.__repr__(value) if isinstance(value, float) else repr(value)  # numpy's too
        return _framed(type(value).__name__[:1].encode(), text.encode())
    raise TypeError(f"{type(value).__name__} has no canonical bytes: give numbers, text or arrays")


def _framed(kind: bytes, data: bytes) -> bytes:
    return kind + len(data).to_bytes(8, "little") + data


def record(
    ring: Ring, before: State, counts: Counts, outcome: tuple[LookResult, State], code: str
) -> dict[str, Any]:
    """The record of one look, as JSON values. ``code`` is the version that decided.

    Floats keep their exact value: Python writes the shortest text that reads back to the same bits.
    """
    result, after = outcome
    return {
        "format": RECORD_FORMAT,
        "code": code,
        "rollout_id": ring.rollout_id,
        "stage": ring.stage,
        "started_s": ring.started_s,
        "look": result.look,
        "alpha": ring.alpha,
        "rings": ring.rings,
        "looks_s": list(ring.looks_s),
        "virtual": ring.virtual,
        "seed": ring.seed.hex(),
        "devices": ring.size,
        "canaries": ring.canaries,
        "hashes": hashes(ring, counts),
        "state_before": before.to_bytes().hex(),
        "state_after": after.to_bytes().hex(),
        "result": as_json(result),
    }


def as_json(value: Any) -> Any:
    """A result as JSON values: dataclasses as objects, enums as their text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def replay(
    recorded: Mapping[str, Any], ring: Ring, counts: Counts, judge: Look = look
) -> list[str]:
    """Make the decision again; every difference in words, none when it is the same byte for byte.

    ``judge`` is the look that was taken: another one for paired arms.

    Raises:
        ValueError: the record is not of a format this version reads, or damaged.
    """
    if recorded.get("format") != RECORD_FORMAT:
        raise ValueError(
            f"the record has format {recorded.get('format')!r}; this version reads {RECORD_FORMAT}"
        )
    before = State.from_bytes(bytes.fromhex(recorded["state_before"]))
    outcome = judge(ring, before, counts, int(recorded["look"]))
    again = record(ring, before, counts, outcome, str(recorded["code"]))
    return _differences("", dict(recorded), again)


def _differences(where: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(f"{where}.{key}".strip("."), old.get(key), new.get(key))
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            difference
            for number, (one, other) in enumerate(zip(old, new, strict=True))
            for difference in _differences(f"{where}[{number}]", one, other)
        ]
    same = json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)
    return [] if same else [f"{where}: recorded {_short(old)}, computed {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
