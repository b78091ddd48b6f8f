"""The trial of a bundle as the updater's port. No numpy and no onnxruntime: they are the
child's.

Rules kept here:

- Two children, one after the other: the trial, which decides, and for a bundle that passed it the one
  that makes and measures its saved form, which decides nothing about the bundle.
- What was measured is kept beside the slot, so that the swap knows it after a restart too.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.adapters.durable import disk_errors
from agent.adapters.measured import MeasuredStore
from agent.bundle import MANIFEST_NAME, Manifest, manifest_sha256
from agent.delivery import Offload, run_inline, run_to_end
from agent.errors import DeviceError
from agent.ports import TrialResult
from agent.runtime.providers import DEFAULT_PROVIDERS
from agent.runtime.saved_form import SavedForm, read_form
from agent.runtime.trial_process import TrialLimits, run_form_trial, run_trial

__all__ = ["ProcessTrial", "TrialKeeping", "TrialLimits"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrialKeeping:
    """Where measures and saved forms are kept. ``reserve_bytes``: room on the disk that a form leaves."""

    store: MeasuredStore
    reserve_bytes: int = 64 * 1024 * 1024
    offload: Offload = run_inline


class ProcessTrial:
    """Implements ``agent.ports.Trial`` with child processes."""

    def __init__(
        self,
        limits: TrialLimits | None = None,
        *,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
        keeping: TrialKeeping | None = None,
    ) -> None:
        """Without ``keeping`` nothing is kept and no saved form is made."""
        self._limits = limits or TrialLimits()
        self._providers = tuple(providers)
        self._keeping = keeping

    async def run(self, slot_path: str, manifest: Manifest) -> TrialResult:
        """Load, warm up and check a staged bundle apart from everything else.

        Raises:
            DeviceError: the child cannot be started at all.
        """
        report = await run_trial(slot_path, self._limits, providers=self._providers)
        reason = report.reason and f"{manifest.model} {manifest.version}: {report.reason}"
        measures = dict(report.measures)
        if report.ok and self._keeping is not None:
            measures |= await self._keep(slot_path, manifest, measures, self._keeping)
        return TrialResult(report.ok, str(report.reason_code), reason, measures)

    async def _keep(
        self,
        slot_path: str,
        manifest: Manifest,
        measures: Mapping[str, float],
        keeping: TrialKeeping,
    ) -> Mapping[str, float]:
        """Keep the measures and make the saved form. Returns the measures of the form."""
        try:
            digest = await run_to_end(keeping.offload, _digest_in, Path(slot_path))
            await run_to_end(keeping.offload, keeping.store.keep_trial, digest, measures)
            return await self._make_form(slot_path, manifest, digest, keeping)
        except DeviceError as error:
            # The bundle has passed; what is missing is only faster loading or a better estimate.
            _log.warning("%s: %s", manifest.path, error)
            return {}

    async def _make_form(
        self, slot_path: str, manifest: Manifest, digest: str, keeping: TrialKeeping
    ) -> Mapping[str, float]:
        store, offload = keeping.store, keeping.offload
        room_bytes = 2 * manifest.size_bytes + keeping.reserve_bytes
        new = await run_to_end(offload, store.begin_form, digest, room_bytes)
        if new is None:
            _log.info("%s: no room on the disk for a saved form", manifest.path)
            return {}
        form = None
        try:
            problem = await run_form_trial(slot_path, new, self._limits, providers=self._providers)
            if problem:
                _log.warning("%s: no saved form: %s", manifest.path, problem)
            else:
                form = await run_to_end(offload, read_form, new)
        finally:
            await run_to_end(offload, lambda: store.end_form(digest, keep=form is not None))
        return {} if form is None else _measures(form)


def _digest_in(slot: Path) -> str:
    with disk_errors("read", slot):
        return manifest_sha256((slot / MANIFEST_NAME).read_bytes())


def _measures(form: SavedForm) -> Mapping[str, float]:
    return {
        "saved_form": float(form.kept),
        "plain_load_ms": form.plain.load_ms,
        "plain_latency_ms": form.plain.latency_ms,
        "plain_batch_latency_ms": form.plain.batch_latency_ms,
        "saved_load_ms": form.saved.load_ms,
        "saved_latency_ms": form.saved.latency_ms,
        "saved_batch_latency_ms": form.saved.batch_latency_ms,
    }
