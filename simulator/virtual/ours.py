"""The fleet's own gate over one ring of a virtual world: the same functions that the fleet calls.

Rules kept here: nothing of the gate is copied or simplified; a window is given to it once, in the
order of arrival; a look sees only what has arrived by then.
"""

from collections.abc import Sequence

import numpy as np

from fleet.rollout.gate.exposure import Windows as GateWindows
from fleet.rollout.gate.exposure import open_exposure
from fleet.rollout.gate.look import look
from fleet.rollout.gate.opening import Pool, RingPlan, open_ring
from fleet.rollout.gate.result import LookResult
from fleet.rollout.gate.ring import Counts, State
from simulator.virtual.counting import History
from simulator.virtual.windows import RATES, Bools, Ints, Windows

__all__ = ["GateOverRing", "device_ids"]


def device_ids(count: int) -> tuple[str, ...]:
    """Ids of the devices of a world by number, so that they sort by it."""
    return tuple(f"v{number:06}" for number in range(count))


class GateOverRing:
    """One ring from its start to the end of its bake."""

    def __init__(
        self,
        plan: RingPlan,
        cohort: Bools,
        kinds: Sequence[str],
        history: History,
    ) -> None:
        """``cohort`` and ``kinds`` are by number of device, as is ``history``."""
        ids = device_ids(len(cohort))
        rates = [name for name in plan.metrics if name in RATES]
        past = Counts(
            bad={name: history.bad[name] for name in rates},
            total={name: history.total[name] for name in rates},
            level={"output_drift": history.output_drift},
        )
        self.ring = open_ring(plan, Pool(ids, kinds, cohort.tolist()), past)
        number = {device_id: index for index, device_id in enumerate(ids)}
        self._place = np.full(len(cohort), -1, np.int64)  # control may be a sample of the others
        self._place[[number[one] for one in self.ring.device_ids]] = np.arange(self.ring.size)
        self._exposure = open_exposure(
            self.ring.seed, self.ring.started_s, self.ring.device_ids, self.ring.metrics
        )
        self._state = State()
        self._rates = rates

    @property
    def looks_s(self) -> tuple[float, ...]:
        """When it is to be looked at, on the clock of the world."""
        return tuple(self.ring.started_s + after_s for after_s in self.ring.looks_s)

    def add(self, windows: Windows) -> None:
        """Windows that have arrived."""
        place: Ints = self._place[windows.device]
        kept = windows.rows(place >= 0)
        counts = Counts(
            bad={name: kept.rate(name)[0] for name in self._rates},
            total={name: kept.rate(name)[1] for name in self._rates},
            level={"output_drift": kept.output_drift},
        )
        given = GateWindows(place[place >= 0], kept.start_s, kept.end_s, counts)
        self._exposure = self._exposure.add(given)

    def look(self, number: int) -> LookResult:
        """Look ``number`` (from 1) of ``looks_s``, over what has been added."""
        result, self._state = look(self.ring, self._state, self._exposure.counts(), number)
        return result
