"""What virtual devices report, as columns: one row a window, or a step of a deployment.

Rules kept here: no Python object a device or a window; columns of one table are equally long; which
two columns make a rate is said once, under the name the gate has for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

__all__ = ["RATES", "Bools", "Events", "Floats", "Ints", "Outcome", "Windows"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

RATES: Final[Mapping[str, tuple[str, str]]] = {  # metric of the gate -> bad events, all events
    "error_rate": ("failures", "requests"),
    "over_latency_rate": ("over_objective", "requests"),
    "feedback_error_rate": ("wrong", "compared"),
}


class Outcome(IntEnum):
    """How a step of a deployment ended, or that the fleet's own rollback has been obeyed."""

    COMMITTED = 0
    REFUSED = 1
    REVERTED = 2
    RESTORED = 3


class _Columns:
    """What both tables can do."""

    __slots__ = ()

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One table of several, in their order."""
        if len(parts) == 1:
            return parts[0]
        names = [known.name for known in fields(cls)]  # type: ignore[arg-type]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def rows(self, which: Any) -> Self:
        """The rows of a mask or an index."""
        cls = type(self)
        return cls(*(getattr(self, known.name)[which] for known in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Windows(_Columns):
    """Telemetry windows. Times are seconds of the world; ``output_drift`` is nan when nothing came out.

    ``candidate``: the window is of the new bundle.
    """

    device: Ints
    start_s: Floats
    end_s: Floats
    arrived_s: Floats
    candidate: Bools
    requests: Ints
    failures: Ints
    over_objective: Ints
    compared: Ints
    wrong: Ints
    output_drift: Floats

    def __len__(self) -> int:
        return len(self.device)

    def rate(self, metric: str) -> tuple[Ints, Ints]:
        """Bad events and all events of a metric of ``RATES``, a window."""
        bad, total = RATES[metric]
        return getattr(self, bad), getattr(self, total)


@dataclass(frozen=True, slots=True)
class Events(_Columns):
    """Steps of deployments: which device, when, and an ``Outcome``."""

    device: Ints
    at_s: Floats
    outcome: Ints

    def __len__(self) -> int:
        return len(self.device)
