"""The pool in parts, and the tests that a ring makes of them. Pure.

Rules kept here: nothing here depends on who is in the cohort, only on how many
each part has of it; the budgets of all
tests together are the ring's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_STRATA", "MIN_CANARIES", "POOLED", "REST", "Block", "blocks_of", "tests_of"]

POOLED: Final = ""  # the name of the test over all strata, beside the names of strata
REST: Final = "*"  # the block of all strata that are too small for a test of their own
MIN_CANARIES: Final = 8  # in a stratum that gets its own test
MAX_STRATA: Final = 8  # with a test of their own; the largest


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the pool inside which virtual cohorts are drawn.

    ``name`` is the stratum's, or ``REST`` for the strata too small for a test. ``members`` are pool
    indices, ``canaries`` of them are in the cohort.
    """

    name: str
    members: npt.NDArray[np.int64]
    canaries: int

    @property
    def tested(self) -> bool:
        return self.name != REST and MIN_CANARIES <= self.canaries < len(self.members)


def blocks_of(
    strata: npt.NDArray[np.int16], names: tuple[str, ...], cohort: npt.NDArray[np.bool_]
) -> tuple[Block, ...]:
    """The strata that can be expected to hold ``MIN_CANARIES`` canary devices, and the rest as one.

    Given how many canary devices each block has, a hash cohort is a uniformly random choice inside
    each. What makes a block depends on the sizes of strata and of the cohort alone, never on who is
    in it, so this stays exact. At most ``MAX_STRATA`` blocks, the largest.
    """
    share = np.count_nonzero(cohort) / max(1, len(cohort))
    sizes = np.bincount(strata, minlength=len(names))
    order = sorted(range(len(names)), key=lambda index: (-int(sizes[index]), names[index]))
    large = [index for index in order if sizes[index] * share >= MIN_CANARIES][:MAX_STRATA]
    blocks = [(names[index], np.flatnonzero(strata == index)) for index in sorted(large)]
    rest = np.flatnonzero(~np.isin(strata, large))
    if len(rest):
        blocks.append((REST, rest))
    return tuple(
        Block(name, members, int(np.count_nonzero(cohort[members]))) for name, members in blocks
    )


def tests_of(blocks: Sequence[Block], alpha: float) -> Mapping[str, float]:
    """What each test of a ring may spend: half for all devices, half shared by the strata.

    A fleet of one block has no strata to tell apart: the test over all devices spends everything.
    """
    tested = [block.name for block in blocks if block.tested] if len(blocks) > 1 else []
    if not tested:
        return {POOLED: alpha}
    return {POOLED: alpha / 2, **{name: alpha / (2 * len(tested)) for name in tested}}
