"""An exponential histogram with base 2^(2^-scale), the shape of OpenTelemetry's, at a fixed scale
of 3.

Bucket ``i`` holds values in (base^i, base^(i+1)]; with scale 3 a bucket is 9 % wide. Values outside
the bounds are counted in the first or last bucket, so that its size is bounded. The formula is from
the OpenTelemetry metrics data model, "Exponential Buckets". Not safe for threads: its owner locks.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["SCALE", "HistogramData", "LatencyHistogram"]

SCALE: Final = 3
_PER_OCTAVE: Final = 1 << SCALE
MIN_INDEX: Final = -20 * _PER_OCTAVE  # about a microsecond
MAX_INDEX: Final = 10 * _PER_OCTAVE - 1  # about a thousand seconds


@dataclass(frozen=True, slots=True)
class HistogramData:
    """The fields of a ``report_pb2.Histogram``; values in seconds. ``counts[k]`` belongs to bucket
    ``offset + k``."""

    scale: int
    offset: int
    counts: tuple[int, ...]
    zero_count: int
    sum: float
    max: float

    def to_json(self) -> dict[str, Any]:
        """Keyword arguments of ``report_pb2.Histogram``."""
        return {
            "scale": self.scale,
            "offset": self.offset,
            "counts": list(self.counts),
            "zero_count": self.zero_count,
            "sum": self.sum,
            "max": self.max,
        }


class LatencyHistogram:
    """Counts seconds."""

    __slots__ = ("_counts", "_max", "_sum", "_zero")

    def __init__(self) -> None:
        self._counts = [0] * (MAX_INDEX - MIN_INDEX + 1)
        self._zero = 0
        self._sum = 0.0
        self._max = 0.0

    def record(self, seconds: float) -> None:
        """Count one value; zero and below count as zero."""
        if seconds <= 0.0:
            self._zero += 1
            return
        index = math.ceil(math.log2(seconds) * _PER_OCTAVE) - 1
        self._counts[min(max(index, MIN_INDEX), MAX_INDEX) - MIN_INDEX] += 1
        self._sum += seconds
        self._max = max(self._max, seconds)

    def data(self) -> HistogramData:
        """What was counted, without the empty buckets at both ends."""
        used = [i for i, count in enumerate(self._counts) if count]
        if not used:
            return HistogramData(SCALE, 0, (), self._zero, 0.0, 0.0)
        counts = tuple(self._counts[used[0] : used[-1] + 1])
        return HistogramData(SCALE, used[0] + MIN_INDEX, counts, self._zero, self._sum, self._max)
