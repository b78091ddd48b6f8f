"""What this device measured of each bundle, and its own saved form of it, beside the slots.

Rules kept here:

- A folder a bundle, named by its digest: ``trial.json`` (measures of the trial), ``swap.json`` (how it
  was last brought in), ``form/`` (``agent.runtime.saved_form``).
- All of it can be made again: what cannot be read is as if it was not there, and it goes with its slot.
- A form is made in ``.new-form`` and renamed once its record is on the disk.
"""

import contextlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent.adapters.durable import disk_errors, free_bytes, fsync_folder, make_folder, write_durable
from agent.errors import DeviceError

__all__ = ["MeasuredStore"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_TRIAL: Final = "trial.json"
_SWAP: Final = "swap.json"
_FORM: Final = "form"
_NEW_FORM: Final = ".new-form"
MAX_RECORD_BYTES: Final = 64 * 1024


class MeasuredStore:
    """The folder; blocking."""

    def __init__(self, root: Path) -> None:
        """Nothing is made or read before it is needed."""
        self._root = root

    # --- saved forms ------------------------------------------------------------------------------

    def form_path(self, manifest_sha256: str) -> str:
        """Where the saved form of this bundle is, if it has one."""
        return str(self._folder(manifest_sha256) / _FORM)

    def begin_form(self, manifest_sha256: str, room_bytes: int) -> Path | None:
        """An empty folder to make a form in; None when ``room_bytes`` are not free. Raises DeviceError."""
        folder = make_folder(make_folder(self._root) / self._folder(manifest_sha256).name)
        if free_bytes(folder) < room_bytes:
            return None
        new = folder / _NEW_FORM
        with disk_errors("make", new):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
        return new

    def end_form(self, manifest_sha256: str, *, keep: bool) -> None:
        """Take what was made into use, or away. Raises DeviceError."""
        folder = self._folder(manifest_sha256)
        new, form = folder / _NEW_FORM, folder / _FORM
        with disk_errors("replace", form):
            if not keep:
                shutil.rmtree(new, ignore_errors=True)
                return
            shutil.rmtree(form, ignore_errors=True)
            fsync_folder(new)
            new.rename(form)
            fsync_folder(folder)

    # --- records ----------------------------------------------------------------------------------

    def keep_trial(self, manifest_sha256: str, measures: Mapping[str, float]) -> None:
        """Remember what a trial measured. Raises DeviceError."""
        self._write(manifest_sha256, _TRIAL, {"measures": dict(measures)})

    def model_bytes(self, manifest_sha256: str) -> int | None:
        """The most memory this bundle took in its trial, beyond an empty runtime; None: unknown."""
        record = self._read(manifest_sha256, _TRIAL)
        measures = record.get("measures") if record else None
        value = measures.get("model_rss_bytes") if isinstance(measures, dict) else None
        if isinstance(value, int | float) and math.isfinite(value) and value > 0:
            return int(value)
        return None

    def keep_swap(self, manifest_sha256: str, plan: Mapping[str, Any]) -> None:
        """Remember how a bundle was brought in. Raises DeviceError."""
        self._write(manifest_sha256, _SWAP, plan)

    def swap(self, manifest_sha256: str) -> Mapping[str, Any]:
        """How a bundle was brought in; empty when nothing is known."""
        return self._read(manifest_sha256, _SWAP) or {}

    def keep_only(self, digests: frozenset[str]) -> None:
        """Remove what is known of every other bundle. Raises DeviceError."""
        if not self._root.is_dir():
            return
        with disk_errors("clear", self._root):
            for path in list(self._root.iterdir()):
                if _DIGEST.fullmatch(path.name) and path.name not in digests:
                    shutil.rmtree(path)

    def _folder(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise DeviceError(f"{digest[:80]!r} is not the digest of a manifest")
        return self._root / digest

    def _write(self, digest: str, name: str, record: Mapping[str, Any]) -> None:
        folder = make_folder(make_folder(self._root) / self._folder(digest).name)
        write_durable(folder / name, json.dumps(record, sort_keys=True).encode() + b"\n")

    def _read(self, digest: str, name: str) -> dict[str, Any] | None:
        path = self._folder(digest) / name
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if path.stat().st_size <= MAX_RECORD_BYTES:
                record = json.loads(path.read_bytes())
                return record if isinstance(record, dict) else None
        return None
