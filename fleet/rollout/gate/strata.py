"""Which strata are told apart when devices fail, and what each test of them may spend. Pure.

Rules kept here: a stratum is a device class with an execution provider ("camera/cuda"); how many are
told apart follows from the fleet and not from a stage, so what all stages spend together is bounded;
a stratum that was stopped keeps its share, so a stop makes no other test easier; a fleet of one
stratum, or of small ones alone, is judged as a whole.
"""

from dataclasses import dataclass

from fleet.rollout.gate.blocks import MIN_CANARIES
from fleet.rollout.snapshot import Snapshot

__all__ = ["Apart", "told_apart"]


@dataclass(frozen=True, slots=True)
class Apart:
    """The strata of at least ``MIN_CANARIES`` devices that go on, by name; ``number`` (S) counts the
    stopped ones too. None of them: the fleet is judged as a whole.
    """

    names: tuple[str, ...] = ()
    number: int = 0

    def pooled_alpha(self, alpha: float) -> float:
        """What the test of all devices may spend: all of ``alpha``, or half beside strata."""
        return alpha / 2 if self.names else alpha

    def own_alpha(self, alpha: float) -> float:
        """What the test of one stratum may spend: alpha/(2 S)."""
        return alpha / (2 * self.number)


def told_apart(snapshot: Snapshot) -> Apart:
    """The strata of the rollout's devices, in both arms."""
    stopped = snapshot.rollout.stopped
    if len({*snapshot.strata, *stopped}) < 2:
        return Apart()
    large = sorted(name for name, size in snapshot.strata.items() if size >= MIN_CANARIES)
    return Apart(tuple(large), len({*large, *stopped})) if large else Apart()
