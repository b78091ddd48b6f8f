"""Asks the device what ``memory_policy`` needs to know before a version is loaded, and keeps what was chosen.

Rules kept here:
- A device that measures nothing swaps beside, as it always did.
- Only the deployment of a new bundle can be refused for want of memory. What served before is put back
  even when it looks too large: nothing else would answer.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from agent.delivery.offload import Offload, run_to_end
from agent.errors import AgentError
from agent.ports import SlotStore, SwapMemory
from agent.update.memory_policy import MemoryLimits, MemorySnapshot, SwapMode, SwapPlan, plan_swap

__all__ = ["SwapPlanner"]

logger = logging.getLogger(__name__)


class SwapPlanner:
    """One a device. ``memory`` None: nothing is measured here."""

    def __init__(
        self, memory: SwapMemory | None, slots: SlotStore, offload: Offload, limits: MemoryLimits
    ) -> None:
        self._memory = memory
        self._slots = slots
        self._offload = offload
        self._limits = limits
        self._plans: dict[str, SwapPlan] = {}

    @property
    def hold_s(self) -> float:
        """How long requests wait for a model whose only version is being replaced."""
        return self._limits.hold_s

    def measures(self, model: str) -> Mapping[str, float]:
        """Of the last plan for this model, for the deployment's report; empty when there was none."""
        plan = self._plans.get(model)
        return {} if plan is None else plan.measures()

    async def plan(
        self, model: str, manifest_sha256: str, others: Iterable[str], *, may_refuse: bool
    ) -> SwapPlan | None:
        """How to bring this bundle in beside or in place of ``others``, digests of the same model that
        are loaded; None where nothing is measured."""
        if self._memory is None:
            return None
        snapshot = await run_to_end(
            self._offload, self._snapshot, self._memory, manifest_sha256, tuple(others)
        )
        plan = plan_swap(snapshot, self._limits)
        if plan.mode is SwapMode.REFUSE and not may_refuse:
            mode = SwapMode.UNLOAD_FIRST if snapshot.old_loaded else SwapMode.BESIDE
            plan = replace(plan, mode=mode, reason=f"{plan.reason}; loaded all the same")
        self._plans[model] = plan
        level = logging.INFO if plan.mode is SwapMode.BESIDE else logging.WARNING
        logger.log(level, "model %s: swap %s: %s", model, plan.mode.value, plan.reason)
        try:
            await run_to_end(self._offload, self._memory.keep_swap, manifest_sha256, plan.to_json())
        except AgentError as error:
            logger.warning("model %s: how it was swapped is not kept: %s", model, error)
        return plan

    def _snapshot(
        self, memory: SwapMemory, manifest_sha256: str, others: tuple[str, ...]
    ) -> MemorySnapshot:
        manifest = self._slots.manifest(manifest_sha256)
        measured = [memory.model_bytes(digest) for digest in others]
        known = [size for size in measured if size is not None]
        return MemorySnapshot(
            available_bytes=memory.available_bytes(),
            candidate_peak_bytes=memory.model_bytes(manifest_sha256),
            candidate_size_bytes=manifest.size_bytes if manifest is not None else 0,
            old_bytes=sum(known) if known and len(known) == len(measured) else None,
            old_loaded=bool(others),
        )
