"""Virtual cohorts: random choices from the pool as large as the real one, drawn once a ring. Pure.

Under "the new bundle changes nothing" the hash cohort is one more of them, whatever the data look
like; that is all the gate assumes. Rules kept here: drawn inside each block with the real cohort's
number of devices (so strata can be judged on their own, and dropped, without a new draw); from a
stream that numpy promises not to change, so that a decision can be recomputed years later; sums are
of integers, so that they are the same on every machine and equal sums are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from fleet.rollout.gate.ring import BoolArray, IntArray, Ring

__all__ = ["BlockSums", "Draws", "block_sums", "virtual_cohorts"]

_CHUNK_CELLS: Final = 1 << 20
_MEMBER_CELLS: Final = (
    1 << 24
)  # part of the draw, like the order of blocks: audits of old rollouts need it
_CACHED: Final = 2  # rings; at most 160 MB each, usually 5


@dataclass(frozen=True, slots=True)
class Draws:
    """The virtual cohorts of one block: ``chosen`` has shape (virtual, k), indices into its members.

    ``complement``: the indices are of those left out, because they are fewer.
    """

    chosen: npt.NDArray[np.signedinteger]
    complement: bool


@dataclass(frozen=True, slots=True)
class BlockSums:
    """Of one block and one metric: sum of scores and number of devices with data, both of shape
    (virtual + 1,), the real cohort first; and the same for the whole block."""

    score: IntArray
    devices: IntArray
    all_score: int
    all_devices: int


def virtual_cohorts(ring: Ring) -> tuple[Draws, ...]:
    """The virtual cohorts of a ring, one ``Draws`` for each of ``ring.blocks``; kept for a few rings."""
    sizes = tuple((len(block.members), block.canaries) for block in ring.blocks)
    return _draw_all(ring.seed, ring.virtual, sizes)


@lru_cache(maxsize=_CACHED)
def _draw_all(seed: bytes, virtual: int, sizes: tuple[tuple[int, int], ...]) -> tuple[Draws, ...]:
    stream = np.random.PCG64(int.from_bytes(seed, "big"))
    return tuple(_draw(stream, virtual, size, wanted) for size, wanted in sizes)


def _draw(stream: np.random.PCG64, virtual: int, size: int, wanted: int) -> Draws:
    complement = 2 * wanted > size
    count = size - wanted if complement else wanted
    kind = np.int16 if size <= np.iinfo(np.int16).max else np.int32
    chosen = np.empty((virtual, count), dtype=kind)
    rows = max(1, _MEMBER_CELLS // max(1, size))
    for start in range(0, virtual, rows):
        chosen[start : start + rows] = _subsets(stream, min(rows, virtual - start), size, count)
    chosen.setflags(write=False)
    return Draws(chosen, complement)


def _subsets(stream: np.random.PCG64, rows: int, size: int, count: int) -> IntArray:
    """``count`` different numbers below ``size`` in each row, every set equally likely.

    Floyd's method (Bentley and Floyd, "Programming pearls: a sample of brilliance", CACM 30, 1987):
    for j = size - count ... size - 1 take a number of 0..j, or j itself if it is taken already.
    A number below j + 1 is the product with 32 random bits, shifted: uneven by less than 1 in 40,000.
    """
    taken: BoolArray = np.zeros((rows, size), dtype=np.bool_)
    chosen = np.empty((count, rows), dtype=np.int64)
    row = np.arange(rows)
    for step, j in enumerate(range(size - count, size)):
        bits = stream.random_raw((rows + 1) // 2).view(np.uint32)[:rows].astype(np.uint64)
        number = ((bits * np.uint64(j + 1)) >> np.uint64(32)).astype(np.int64)
        number = np.where(taken[row, number], j, number)
        taken[row, number] = True
        chosen[step] = number
    return chosen.T


def block_sums(
    ring: Ring, scores: Sequence[tuple[IntArray, BoolArray]]
) -> tuple[tuple[BlockSums, ...], ...]:
    """Sums of each metric's scores over every cohort, real first: one tuple of blocks per metric.

    ``scores`` has for each metric the scores of the pool (integers, below 2^31) and which devices
    have one.
    """
    draws = virtual_cohorts(ring)
    return tuple(
        tuple(
            _sums(draw, score[block.members], has[block.members], ring.cohort[block.members])
            for draw, block in zip(draws, ring.blocks, strict=True)
        )
        for score, has in scores
    )


def _sums(draw: Draws, score: IntArray, has: BoolArray, cohort: BoolArray) -> BlockSums:
    masked = np.where(has, score, 0)
    virtual, wanted = len(draw.chosen), int(np.count_nonzero(cohort))
    sums = np.empty(virtual + 1, dtype=np.int64)
    sums[0] = masked[cohort].sum()
    sums[1:] = _gather(draw, masked)
    if has.all():
        devices = np.full(virtual + 1, wanted, dtype=np.int64)
    else:
        devices = np.empty(virtual + 1, dtype=np.int64)
        devices[0] = np.count_nonzero(has[cohort])
        devices[1:] = _gather(draw, has.astype(np.int64))
    return BlockSums(sums, devices, int(masked.sum()), int(np.count_nonzero(has)))


def _gather(draw: Draws, values: IntArray) -> IntArray:
    """The sum of ``values`` (below 2^31) over each virtual cohort."""
    virtual, count = draw.chosen.shape
    sums = np.empty(virtual, dtype=np.int64)
    small = values.astype(np.int32)
    rows = max(1, _CHUNK_CELLS // max(1, count))
    for start in range(0, virtual, rows):
        part = np.take(small, draw.chosen[start : start + rows])
        sums[start : start + rows] = part.sum(axis=1, dtype=np.int64)
    return values.sum() - sums if draw.complement else sums
