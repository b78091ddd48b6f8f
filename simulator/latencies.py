"""Latencies of requests that nobody sent: drawn by the script, as the histogram a model server keeps."""

import math
import random
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from protos import report_pb2
from simulator.chance import binomial
from simulator.scenario import ModelBehaviour

__all__ = ["latency_histogram"]

SCALE: Final = 3  # of the histograms, as the real model server's
EXACT_UP_TO: Final = 64  # requests a window up to which each latency is drawn


@dataclass(slots=True)
class _Latencies:
    """Counts by bucket, their sum in seconds, and how many are over the objective."""

    counts: dict[int, int]
    total_s: float = 0.0
    over: int = 0

    def add(self, latency_s: float, count: int, *, over: bool) -> None:
        bucket = _bucket(latency_s)
        self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.total_s += latency_s * count
        self.over += count * over


def latency_histogram(
    draw: random.Random, requests: int, behaviour: ModelBehaviour, objective_ms: float
) -> tuple[report_pb2.Histogram | None, int]:
    """Latencies of ``requests``, in seconds, and how many of them are over the objective.

    Log-normal around ``latency_ms``; a share of ``over_objective_rate`` takes one to two times the
    objective instead. Each is drawn while there are few; of many, each bucket gets its expected
    number, rounded so that the sum is right.
    """
    if requests <= 0:
        return None, 0
    slow = binomial(draw, requests, behaviour.over_objective_rate)
    latencies = _usual(draw, requests - slow, behaviour, objective_ms / 1000)
    steps = 2**SCALE
    for step in range(steps):
        count = slow // steps + (step < slow % steps)
        if count:
            latencies.add(objective_ms / 1000 * 2 ** ((step + 0.5) / steps), count, over=True)
    first, last = min(latencies.counts), max(latencies.counts)
    histogram = report_pb2.Histogram(
        scale=SCALE,
        offset=first,
        counts=[latencies.counts.get(bucket, 0) for bucket in range(first, last + 1)],
        sum=latencies.total_s,
        max=_lower_s(last + 1),
    )
    return histogram, latencies.over


def _usual(
    draw: random.Random, requests: int, behaviour: ModelBehaviour, objective_s: float
) -> _Latencies:
    latencies = _Latencies({})
    mu, sigma = math.log(behaviour.latency_ms / 1000), max(behaviour.latency_spread, 1e-6)
    if requests <= EXACT_UP_TO:
        for _ in range(requests):
            latency_s = draw.lognormvariate(mu, sigma)
            latencies.add(latency_s, 1, over=latency_s > objective_s)
        return latencies
    normal = NormalDist(mu, sigma)
    last, given = _bucket(math.exp(mu + 4 * sigma)), 0
    for bucket in range(_bucket(math.exp(mu - 4 * sigma)), last + 1):
        below = 1.0 if bucket == last else normal.cdf(math.log(_lower_s(bucket + 1)))
        count = round(requests * below) - given
        if count > 0:
            latencies.add(_lower_s(bucket) * 2 ** (0.5 / 2**SCALE), count, over=False)
            given += count
    latencies.over = round(requests * (1.0 - normal.cdf(math.log(objective_s))))
    return latencies


def _bucket(latency_s: float) -> int:
    """Index of the bucket (2^(i/8), 2^((i+1)/8)] that holds ``latency_s``."""
    return math.ceil(math.log2(max(latency_s, 1e-9)) * 2**SCALE) - 1


def _lower_s(bucket: int) -> float:
    return float(2.0 ** (bucket / 2**SCALE))
