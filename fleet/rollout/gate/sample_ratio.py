"""Whether the cohort is as large as it should be. Pure.

Rules kept here: a cohort that is not the share it was asked to be was not chosen by the hash alone,
and then nothing that compares it can be believed.
"""

from typing import Final

from agent.binomial import upper_tail

__all__ = ["IMPLAUSIBLE", "sample_ratio_p"]

IMPLAUSIBLE: Final = 1e-4


def sample_ratio_p(canaries: int, devices: int, percent_bp: int) -> float:
    """The two-sided binomial p-value of ``canaries`` among ``devices`` at this share, by doubling.

    (Fabijan et al., "Diagnosing Sample Ratio Mismatch in Online Controlled Experiments", KDD 2019.)
    """
    rate = percent_bp / 10_000
    at_least = upper_tail(canaries, devices, rate)
    at_most = upper_tail(devices - canaries, devices, 1 - rate)
    return min(1.0, 2 * min(at_least, at_most))
