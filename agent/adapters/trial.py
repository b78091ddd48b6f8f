"""The trial of a bundle as the updater's port. No numpy and no onnxruntime: they are the
child's."""

from agent.bundle import Manifest
from agent.ports import TrialResult
from agent.runtime.trial_process import TrialLimits, run_trial

__all__ = ["ProcessTrial", "TrialLimits"]


class ProcessTrial:
    """Implements ``agent.ports.Trial`` with one child process a run."""

    def __init__(self, limits: TrialLimits | None = None) -> None:
        self._limits = limits or TrialLimits()

    async def run(self, slot_path: str, manifest: Manifest) -> TrialResult:
        """Load, warm up and check a staged bundle apart from everything else.

        Raises:
            DeviceError: the child cannot be started at all.
        """
        report = await run_trial(slot_path, self._limits)
        reason = report.reason and f"{manifest.model} {manifest.version}: {report.reason}"
        return TrialResult(report.ok, str(report.reason_code), reason, report.measures)
