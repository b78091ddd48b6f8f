"""What the agent and its model server may take of the machine, and whether they take more. Pure.

Rules kept here:
- A budget is broken only once it has been crossed at every reading for ``sustained_s``: a peak is not a finding.
- Of models it is the sum of what their bundles state that counts: they share one process.
- A limit of 0 is off. What could not be read (0, or no sensor) breaks nothing: a broken sensor is no load.
- A broken budget holds until one reading is within it again.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from agent.ports import ModelMemory, ResourceUse

__all__ = ["Breach", "Budget", "BudgetLimits", "BudgetWatch"]


class Budget(StrEnum):
    """What is limited; the values are the reason codes."""

    MEMORY = "budget_memory"
    MODELS = "budget_models"
    CPU = "budget_cpu"
    TEMPERATURE = "budget_temperature"
    DISK = "budget_disk"


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """0: no limit. ``sample_s``: between two readings while any limit is on."""

    max_rss_bytes: int = 0
    max_cpu_percent: float = 0.0
    max_temperature_c: float = 0.0
    min_disk_free_bytes: int = 0
    sustained_s: float = 60.0
    sample_s: float = 5.0

    @property
    def any(self) -> bool:
        """Whether there is anything to watch."""
        return any(
            (
                self.max_rss_bytes,
                self.max_cpu_percent,
                self.max_temperature_c,
                self.min_disk_free_bytes,
            )
        )


@dataclass(frozen=True, slots=True)
class Breach:
    """A budget that has been broken since ``since_s`` (monotonic)."""

    budget: Budget
    since_s: float
    text: str


class BudgetWatch:
    """Remembers since when each limit has been crossed. Owned by one task."""

    __slots__ = ("_breaches", "_limits", "_since")

    def __init__(self, limits: BudgetLimits) -> None:
        self._limits = limits
        self._since: dict[Budget, float] = {}
        self._breaches: tuple[Breach, ...] = ()

    @property
    def breaches(self) -> tuple[Breach, ...]:
        """What was broken at the last reading."""
        return self._breaches

    def observe(
        self, use: ResourceUse, monotonic_s: float, models: ModelMemory | None = None
    ) -> tuple[Breach, ...]:
        """Take a reading; returns every budget that is broken now. ``models``: what the loaded bundles state."""
        crossed = _crossed(use, self._limits)
        if models is not None and models.held_bytes > models.allowed_bytes:
            crossed[Budget.MODELS] = _models_text(models)
        self._since = {
            budget: self._since.get(budget, monotonic_s) for budget in Budget if budget in crossed
        }
        self._breaches = tuple(
            Breach(budget, since_s, f"{crossed[budget]}, for {monotonic_s - since_s:.0f} s")
            for budget, since_s in self._since.items()
            if monotonic_s - since_s >= self._limits.sustained_s
        )
        return self._breaches


def _crossed(use: ResourceUse, limits: BudgetLimits) -> dict[Budget, str]:
    found = {}
    if 0 < limits.max_rss_bytes < use.rss_bytes:
        found[Budget.MEMORY] = (
            f"agent and model server hold {_mib(use.rss_bytes)}, allowed are "
            f"{_mib(limits.max_rss_bytes)} ([health] max_rss_bytes)"
        )
    if 0 < limits.max_cpu_percent < use.cpu_percent:
        found[Budget.CPU] = (
            f"agent and model server use {use.cpu_percent:.0f} % of one core, allowed are "
            f"{limits.max_cpu_percent:g} % ([health] max_cpu_percent)"
        )
    temperature_c = use.temperature_c if use.temperature_c is not None else -math.inf
    if 0 < limits.max_temperature_c < temperature_c:
        found[Budget.TEMPERATURE] = (
            f"the device is at {temperature_c:.0f} °C, allowed are {limits.max_temperature_c:g} °C "
            f"([health] max_temperature_c)"
        )
    if 0 < use.disk_free_bytes < limits.min_disk_free_bytes:
        found[Budget.DISK] = (
            f"{_mib(use.disk_free_bytes)} are free on the disk, wanted are "
            f"{_mib(limits.min_disk_free_bytes)} ([health] min_disk_free_bytes)"
        )
    return found


def _models_text(models: ModelMemory) -> str:
    return (
        f"the model server holds {_mib(models.held_bytes)}, its bundles state "
        f"{_mib(models.allowed_bytes)} with the runtime: {', '.join(models.shares)} (requires.memory_bytes)"
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"
