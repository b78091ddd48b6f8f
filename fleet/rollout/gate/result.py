"""What a look found, in full. Rules kept here: numbers and plain words, nothing that decides."""

from dataclasses import dataclass

from fleet.rollout.gate.metrics import Kind
from fleet.rollout.gate.verdict import Verdict

__all__ = ["Arm", "LookResult", "MetricResult", "StratumResult"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a metric: devices with enough data, and their rate (all bad of all events) or mean level."""

    devices: int
    bad: int
    total: int
    value: float | None


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One metric at one look.

    ``z`` is how many standard deviations of the virtual cohorts the real one lies on the worse side
    (None without data), ``p_value`` the rank of this metric alone (told, not used). ``effect`` is the
    factor between the arms, with a 90 % interval ``low`` to ``high``; ``smallest`` is the smallest
    factor that would be found now with 90 % power.
    """

    name: str
    words: str
    kind: Kind
    cohort: Arm
    control: Arm
    z: float | None
    p_value: float
    effect: float | None
    low: float | None
    high: float | None
    smallest: float | None
    tolerance: float | None


@dataclass(frozen=True, slots=True)
class StratumResult:
    """One test of one look: of a stratum, or of all of them (``name`` "").

    ``p_value`` ranks ``t_real`` among all virtual cohorts; ``removed`` and ``living`` are the state
    after the look; ``alarm``: fewer virtual cohorts than ``allowed`` did as badly.
    """

    name: str
    canaries: int
    devices: int
    t_real: float | None
    p_value: float
    driver: str
    allowed: int
    removed: int
    living: int
    alarm: bool


@dataclass(frozen=True, slots=True)
class LookResult:
    """One look. PASS means no alarm (not that the ring may end: see conclude.py), FAIL an alarm over
    all strata, HOLD that nothing could be compared.

    ``stopped`` has the strata stopped so far, ``newly_stopped`` those that this look stopped: their
    devices go back and the others go on.
    """

    look: int
    looks: int
    verdict: Verdict
    reason: str
    p_value: float
    driver: str
    t_real: float | None
    removed: int
    living: int
    canaries: int
    reported: int
    pooled: StratumResult
    strata: tuple[StratumResult, ...]
    metrics: tuple[MetricResult, ...]
    stopped: tuple[str, ...] = ()
    newly_stopped: tuple[str, ...] = ()
