"""The device's own saved form of a bundle: its models optimised once, their weights ready to be mapped.

Rules kept here:

- It is the device's own work, never shipped. It is used only with the onnxruntime, the kind of
  processor and the providers that made it, for the bundle it was made from, and with exactly the
  bytes that were written.
- It is kept only where it was measured to be better for this model; a bundle always runs without it.
- Whatever is wrong with it means that it is not used, never that the bundle is refused.

A folder a bundle: ``form.json`` and for each stage ``STAGE.onnx`` and ``STAGE.weights``. Light: the
supervisor reads it too.
"""

import hashlib
import json
import os
import platform
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = [
    "RECORD_NAME",
    "FormMeasures",
    "Maker",
    "SavedFile",
    "SavedForm",
    "better_form",
    "files_of",
    "processor",
    "read_form",
    "stage_file",
    "verified_form",
    "write_form",
]

RECORD_NAME: Final = "form.json"
FORMAT: Final = 1
MAX_RECORD_BYTES: Final = 64 * 1024
MAX_SLOWER: Final = 1.05
"""A saved form may be this much slower in a run: less than what one run differs from the next."""
SLOWER_SLACK_MS: Final = 0.02
LOAD_GAIN: Final = 0.8
"""And must load in at most this share of the time, or it is not worth its disk."""
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Maker:
    """What made a form and what alone may load it."""

    manifest_sha256: str
    onnxruntime: str
    processor: str
    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SavedFile:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FormMeasures:
    """Of one form: time to load, the fastest run for one row and for a batch (0: no batch possible)."""

    load_ms: float
    latency_ms: float
    batch_latency_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SavedForm:
    """What ``form.json`` says. ``kept``: better for this model; else only the measures are here."""

    maker: Maker
    kept: bool
    plain: FormMeasures
    saved: FormMeasures
    files: tuple[SavedFile, ...] = field(default=())


def better_form(plain: FormMeasures, saved: FormMeasures) -> bool:
    """Whether the saved form is the better one: it loads faster and no run is slower for it."""
    return saved.load_ms <= LOAD_GAIN * plain.load_ms and all(
        after <= MAX_SLOWER * before + SLOWER_SLACK_MS
        for before, after in (
            (plain.latency_ms, saved.latency_ms),
            (plain.batch_latency_ms, saved.batch_latency_ms),
        )
    )


def processor() -> str:
    """This kind of processor. Optimised graphs are laid out for its instructions, so a card moved to
    another board must not bring them along."""
    lines: set[str] = set()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as info:
            for line in info:
                name = line.partition(":")[0].strip()
                if name in ("flags", "Features", "model name", "CPU part"):
                    lines.add(line.strip())
    except OSError:
        pass  # without it the machine's name alone tells processors apart
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:16]}"


def stage_file(number: int) -> str:
    """The file of a stage's graph; its weights lie beside it."""
    return f"stage-{number}.onnx"


def files_of(folder: Path) -> tuple[SavedFile, ...]:
    """Every file of a form but its record, measured and hashed. Raises OSError."""
    names = sorted(path.name for path in folder.iterdir() if path.name != RECORD_NAME)
    return tuple(SavedFile(name, *_hash(folder / name)) for name in names)


def write_form(folder: Path, form: SavedForm) -> None:
    """Store the record last, once every file is on the disk. Raises OSError."""
    for file in form.files:
        descriptor = os.open(folder / file.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    record = {"format": FORMAT, **asdict(form)}
    path = folder / RECORD_NAME
    with path.open("x", encoding="ascii") as stream:
        stream.write(json.dumps(record, sort_keys=True))
        stream.flush()
        os.fsync(stream.fileno())


def read_form(folder: Path) -> SavedForm | None:
    """The record of a folder; None when there is none that can be read."""
    try:
        path = folder / RECORD_NAME
        if path.stat().st_size > MAX_RECORD_BYTES:
            return None
        return _parse(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # not written to its end, or damaged: the bundle's own files are used


def verified_form(folder: Path, maker: Maker) -> SavedForm | None:
    """The form in ``folder`` when it was kept, made by exactly ``maker``, and every byte is as written."""
    form = read_form(folder)
    if form is None or not form.kept or form.maker != maker or not form.files:
        return None
    try:
        for file in form.files:
            if "/" in file.name or _hash(folder / file.name) != (file.size, file.sha256):
                return None
    except OSError:
        return None
    return form


def _hash(path: Path) -> tuple[int, str]:
    """Size and digest of a regular file with one link. Raises OSError."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError(f"{path} is not a regular file with one link")
        size = 0
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()


def _parse(record: Mapping[str, Any]) -> SavedForm:
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}")
    maker = record["maker"]
    return SavedForm(
        maker=Maker(
            _text(maker["manifest_sha256"]),
            _text(maker["onnxruntime"]),
            _text(maker["processor"]),
            tuple(_text(name) for name in _sequence(maker["providers"])),
        ),
        kept=record["kept"] is True,
        plain=FormMeasures(**{name: float(value) for name, value in record["plain"].items()}),
        saved=FormMeasures(**{name: float(value) for name, value in record["saved"].items()}),
        files=tuple(
            SavedFile(_text(file["name"]), int(file["size"]), _text(file["sha256"]))
            for file in _sequence(record["files"])
        ),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _sequence(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value
