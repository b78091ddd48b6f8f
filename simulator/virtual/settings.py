"""What a virtual world is made of: the population, the candidate bundle, and what befalls everybody.

Rules kept here: every number has a unit in its name, a range and a meaning, so that a scenario file
can be read and refused by the same table; a rate is a share of one; what is 0 by default costs
nothing when it is simulated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from simulator.fields import number, text

__all__ = ["Candidate", "Incident", "Population"]


@dataclass(frozen=True, slots=True)
class Population:
    """``[population]``: devices as statistics see them.

    A device's own error rate is drawn from a Beta distribution with mean ``error_rate`` and
    intra-class correlation ``error_rho`` (two requests of one device are that much more alike than
    two of different devices): Beta(mean (1/rho - 1), (1 - mean)(1/rho - 1)). The same for slow
    requests and for wrong answers among those that get feedback.
    """

    requests_per_min: float = number(30.0, "requests a minute, the median device", most=60_000)
    requests_spread: float = number(0.0, "sigma of the log-normal request rate", most=3)
    diurnal: float = number(0.0, "share by which load swings over a day", most=0.95)
    error_rate: float = number(0.02, "mean share of requests that fail", most=1)
    error_rho: float = number(0.02, "intra-class correlation of failures", most=0.99)
    slow_rate: float = number(0.0, "mean share over the latency objective", most=1)
    slow_rho: float = number(0.02, "intra-class correlation of slow requests", most=0.99)
    feedback_share: float = number(0.0, "share of answers that are told right or wrong", most=1)
    wrong_rate: float = number(0.05, "mean share of wrong answers among those", most=1)
    wrong_rho: float = number(0.02, "intra-class correlation of wrong answers", most=0.99)
    output_drift: float = number(0.0, "mean drift score of a device's outputs", most=10)
    output_drift_spread: float = number(0.3, "sigma of its log-normal over devices", most=3)
    wander: float = number(0.0, "sigma of the log of a device's rates over time", most=3)
    wander_s: float = number(1800.0, "how long such a mood lasts", least=60, most=604_800)
    broken_rate: float = number(0.0, "share of devices that fail every request anyway", most=1)
    late_rate: float = number(0.0, "share of reports that come late", most=1)
    late_s: float = number(120.0, "how late they come, on average", most=86_400)
    lost_rate: float = number(0.0, "share of reports that never come", most=1)
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {"edge/cpu": 1.0},
        metadata={"doc": "class/provider = share of the devices, adding up to 1"},
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """``[candidate]``: what the new bundle changes. As it stands: nothing."""

    error_factor: float = number(1.0, "failures, times this", most=1e6)
    error_floor: float = number(0.0, "at least this share fails; 1 is total failure", most=1)
    slow_factor: float = number(1.0, "slow requests, times this", most=1e6)
    slow_floor: float = number(0.0, "at least this share is slow", most=1)
    wrong_factor: float = number(1.0, "wrong answers, times this", most=1e6)
    drift_factor: float = number(1.0, "drift score, times this", most=1e6)
    only_kind: str = text("", "class/provider on which it is so; empty is everywhere")
    install_s: float = number(10.0, "median time from directive to swap", most=86_400)
    install_spread: float = number(0.5, "sigma of its log-normal", most=3)
    refused_rate: float = number(0.0, "share of devices that refuse it instead", most=1)
    reverted_rate: float = number(0.0, "share of devices that revert it by themselves", most=1)
    reverted_s: float = number(30.0, "how long after the swap they do", most=86_400)
    silent_rate: float = number(0.0, "share of devices that fall silent with it", most=1)

    @property
    def is_worse(self) -> bool:
        """Whether it changes anything for the worse, so that rolling it back is right."""
        factors = (self.error_factor, self.slow_factor, self.wrong_factor, self.drift_factor)
        rates = (self.error_floor, self.slow_floor, self.refused_rate, self.reverted_rate)
        return max(factors) > 1.0 or max(*rates, self.silent_rate) > 0.0


@dataclass(frozen=True, slots=True)
class Incident:
    """``[incident]``: something that befalls every device, whatever it serves."""

    start_s: float = number(0.0, "begins this long after the world", most=1e9)
    duration_s: float = number(0.0, "and lasts so long; 0 is never", most=1e9)
    error_factor: float = number(1.0, "failures, times this", most=1e6)
    slow_factor: float = number(1.0, "slow requests, times this", most=1e6)
    load_factor: float = number(1.0, "requests, times this", most=1e3)
