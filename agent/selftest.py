"""Whether the installed models still answer as they did when they were built: each in a throw-away process.

Rules kept here:
- The running agent and its model server are not disturbed: a self-test has a low priority, its own memory limit and no
  network, like the trial of a new bundle.
- A slot is hashed before its model is loaded. A model without golden cases is only loaded, run and timed.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agent.adapters.slot_store import FolderSlotStore
from agent.adapters.trial import ProcessTrial, TrialLimits
from agent.config import AgentConfig
from agent.errors import AgentError
from agent.state_dir import StatePaths
from agent.status import InstalledModel, read_status

__all__ = ["ModelCheck", "run_selftest"]


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What came of one model. ``reason_code`` is empty when it is in order; ``measures`` are the trial's."""

    model: str
    version: str
    manifest_sha256: str
    ok: bool
    reason_code: str
    text: str
    measures: Mapping[str, float] = field(default_factory=dict)


def run_selftest(config: AgentConfig) -> Iterator[ModelCheck]:
    """Test the active bundle of every model, one after another, as each is done.

    Raises:
        DeviceError: the state folder cannot be read, or a process cannot be started.
    """
    slots = FolderSlotStore(StatePaths(config.device.state_dir).slots)
    trial = ProcessTrial(TrialLimits(wall_s=config.update.trial_timeout_s))
    for installed in read_status(config).models:
        if installed.manifest_sha256:
            yield _check(installed, slots, trial)


def _check(installed: InstalledModel, slots: FolderSlotStore, trial: ProcessTrial) -> ModelCheck:
    digest = installed.manifest_sha256
    try:
        slots.verify(digest)
        manifest = slots.manifest(digest)
    except AgentError as error:
        return _result(installed, "slot_damaged", str(error))
    if manifest is None:
        return _result(installed, "slot_damaged", f"its slot {digest[:12]}… is gone")
    result = asyncio.run(trial.run(slots.path(digest), manifest))
    if not result.ok:
        return _result(installed, result.reason_code, result.reason, result.measures)
    cases = len(manifest.golden)
    text = f"{cases} golden cases answered as built" if cases else "runs; it has no golden cases"
    return _result(installed, "", text, result.measures)


def _result(
    installed: InstalledModel, code: str, text: str, measures: Mapping[str, float] | None = None
) -> ModelCheck:
    return ModelCheck(
        installed.model,
        installed.version,
        installed.manifest_sha256,
        not code,
        code,
        text,
        dict(measures or {}),
    )
