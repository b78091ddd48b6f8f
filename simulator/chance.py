"""Chance that can be asked again: every draw follows from the seed, the device and what is drawn.

Nothing here keeps a generator: a device costs no random state, and the order in which devices are
asked changes nothing.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["binomial", "chance", "one_of", "rng"]

EXACT_UP_TO = 30.0  # expected successes up to which a draw is exact

_Item = TypeVar("_Item")


def _number(seed: int, parts: Sequence[str]) -> int:
    text = "\0".join((str(seed), *parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def chance(seed: int, *parts: str) -> float:
    """A number in [0, 1) that belongs to these parts for ever."""
    return (_number(seed, parts) >> 11) / (1 << 53)


def rng(seed: int, *parts: str) -> random.Random:
    """A generator that belongs to these parts: for a handful of draws, then thrown away."""
    return random.Random(_number(seed, parts))  # noqa: S311 - a simulation, nothing secret


def one_of(items: Sequence[_Item], seed: int, *parts: str) -> _Item:
    """One of ``items``, always the same for these parts."""
    return items[int(chance(seed, *parts) * len(items))]


def binomial(draw: random.Random, count: int, rate: float) -> int:
    """How many of ``count`` succeed at ``rate``.

    Exact, by the waiting time between successes, while few are expected (Devroye, Non-Uniform
    Random Variate Generation, X.4); above that the normal approximation, rounded and clipped.
    """
    if count <= 0 or rate <= 0.0:
        return 0
    if rate >= 1.0:
        return count
    if rate > 0.5:
        return count - binomial(draw, count, 1.0 - rate)
    mean = count * rate
    if mean > EXACT_UP_TO:
        drawn = round(draw.gauss(mean, math.sqrt(mean * (1.0 - rate))))
        return min(max(drawn, 0), count)
    successes, position, log_miss = 0, 0, math.log1p(-rate)
    while True:
        position += int(math.log(1.0 - draw.random()) / log_miss) + 1
        if position > count:
            return successes
        successes += 1
