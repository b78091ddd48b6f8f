"""Windows of telemetry: drained counters add up to report windows, report windows add up to older ones.

Rules kept here:
- Windows merge by addition; merging keeps every request in the sum and says how many windows went in (``merged``).
- Histograms of different resolution merge at the coarser one; a histogram never has more than ``MAX_BUCKETS`` buckets.
- A version in one role is one window: what it did as an arm or as a shadow does not mix with what it answered.
- Kinds of error, outputs and counters are bounded, each with its own limit; what does not fit is counted as ``OTHER``.
- A count never grows beyond ``MAX_COUNT``, which the fleet takes at most.
- An active model, or one that takes part beside it, yields a window even without one request: silence must mean that
  something is wrong.
"""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.ports import ResourceUse, ServedWindow
from protos import report_pb2

__all__ = [
    "MAX_BUCKETS",
    "MAX_COUNT",
    "MAX_COUNTERS",
    "MAX_ERROR_KINDS",
    "MAX_NOTICES",
    "MAX_OUTPUTS",
    "OTHER",
    "ServedModel",
    "WindowAccumulator",
    "merge_histograms",
    "merge_windows",
    "resources_proto",
]

MAX_BUCKETS: Final = 160
MAX_ERROR_KINDS: Final = 32
MAX_OUTPUTS: Final = 32
MAX_COUNTERS: Final = 16
OTHER: Final = "other"
MAX_KIND_CHARS: Final = 64
MAX_COUNT: Final = 2**53
MAX_NOTICES: Final = 8
MAX_REMEMBERED: Final = 32
"""How many bundles the accumulator knows the rollout of."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version this device answers with (or tries in probation), and the rollout that brought it.

    ``role``: "" answers; "arm" and "shadow" are held beside it.
    """

    model: str
    version: str
    manifest_sha256: str
    rollout_id: str = ""
    role: str = ""


def merge_histograms(into: report_pb2.Histogram, other: report_pb2.Histogram) -> None:
    """Add ``other`` to ``into``. A bucket i at scale s covers (2^(i/2^s), 2^((i+1)/2^s)]."""
    into.zero_count += other.zero_count
    into.sum += other.sum
    into.max = max(into.max, other.max)
    added = report_pb2.Histogram()
    added.CopyFrom(other)
    parts = [part for part in (into, added) if part.counts]
    if not parts:
        return
    _align(parts)
    first, last = _span(parts)
    counts = [0] * (last - first)
    for part in parts:
        for index, count in enumerate(part.counts):
            counts[part.offset - first + index] += count
    into.scale, into.offset = parts[0].scale, first
    into.counts[:] = counts


def _align(parts: Sequence[report_pb2.Histogram]) -> None:
    """Bring all to one scale at which together they have at most MAX_BUCKETS buckets."""
    scale = min(part.scale for part in parts)
    for part in parts:
        _downscale(part, part.scale - scale)
    while True:
        first, last = _span(parts)
        if last - first <= MAX_BUCKETS:
            return
        for part in parts:
            _downscale(part, 1)


def _span(parts: Sequence[report_pb2.Histogram]) -> tuple[int, int]:
    first = min(part.offset for part in parts)
    return first, max(part.offset + len(part.counts) for part in parts)


def _downscale(histogram: report_pb2.Histogram, steps: int) -> None:
    if steps <= 0:
        return
    first = histogram.offset >> steps
    last = (histogram.offset + len(histogram.counts) - 1) >> steps
    counts = [0] * (last - first + 1)
    for index, count in enumerate(histogram.counts):
        counts[((histogram.offset + index) >> steps) - first] += count
    histogram.offset = first
    histogram.counts[:] = counts
    histogram.scale -= steps


def merge_windows(older: report_pb2.Window, newer: report_pb2.Window) -> report_pb2.Window:
    """One window that covers both; the arguments stay as they are.

    Raises:
        ValueError: they are not of the same model, manifest, rollout and role.
    """
    if _key(older) != _key(newer):
        raise ValueError(f"windows of {_key(older)} and {_key(newer)} do not add up")
    merged = report_pb2.Window()
    merged.CopyFrom(newer)
    merged.start_unix_ms = min(older.start_unix_ms, newer.start_unix_ms)
    merged.end_unix_ms = max(older.end_unix_ms, newer.end_unix_ms)
    for field in _COUNTS:
        setattr(merged, field, min(getattr(older, field) + getattr(newer, field), MAX_COUNT))
    merged.feedback_abs_error_sum = older.feedback_abs_error_sum + newer.feedback_abs_error_sum
    for field, most in _MAPS.items():
        _add_names(getattr(merged, field), getattr(older, field), most)
    if older.HasField("latency_s"):
        merge_histograms(merged.latency_s, older.latency_s)
    notices = dict.fromkeys((*newer.notices, *older.notices))
    merged.notices[:] = list(notices)[:MAX_NOTICES]
    if not newer.HasField("resources") and older.HasField("resources"):
        merged.resources.CopyFrom(older.resources)
    merged.merged = max(older.merged, 1) + max(newer.merged, 1)
    return merged


_COUNTS: Final = (
    "requests",
    "failures",
    "over_objective",
    "input_violations",
    "output_violations",
    "non_finite",
    "feedback_count",
    "feedback_correct",
    "feedback_unknown",
    "shadow_compared",
    "shadow_disagreed",
    "shadow_dropped",
    "confidence_count",
    "low_confidence",
)
_MAPS: Final = {
    "error_kinds": MAX_ERROR_KINDS,
    "output_counts": MAX_OUTPUTS,
    "counters": MAX_COUNTERS + 1,
}
"""Counts by name, and how many names each holds at most, ``OTHER`` among them. (A model server takes no more than
``MAX_COUNTERS`` names of counters; only windows of two of its processes can have more between them.)"""
_SAY_SOMETHING: Final = (
    "requests",
    "input_violations",
    "feedback_count",
    "feedback_unknown",
    "shadow_dropped",
    "counters",
)
"""A version that counted none of these and does not serve needs no window."""


def _key(window: report_pb2.Window) -> tuple[str, str, str, str]:
    return (window.model, window.manifest_sha256, window.rollout_id, window.role)


def _add_names(total: MutableMapping[str, int], counts: Mapping[str, int], most: int) -> None:
    """Add counts by name; ``total`` has at most ``most`` names, the last of them for all others."""
    for text, count in counts.items():
        name = text[:MAX_KIND_CHARS]
        if name not in total and len(total) - (OTHER in total) >= most - 1:
            name = OTHER
        total[name] = min(total.get(name, 0) + max(count, 0), MAX_COUNT)


def resources_proto(use: ResourceUse) -> report_pb2.Resources:
    """The same values as a message."""
    resources = report_pb2.Resources(
        rss_bytes=max(use.rss_bytes, 0),
        cpu_percent=use.cpu_percent,
        disk_free_bytes=max(use.disk_free_bytes, 0),
        memory_available_bytes=max(use.memory_available_bytes, 0),
    )
    if use.temperature_c is not None:
        resources.temperature_c = use.temperature_c
    return resources


class WindowAccumulator:
    """Adds drained windows up until they are due. Owned by one task."""

    __slots__ = ("_open", "_rollouts", "start_ms")

    def __init__(self, start_ms: int) -> None:
        self.start_ms = start_ms
        self._open: dict[tuple[str, str, str], report_pb2.Window] = {}
        # Also of versions that have just been replaced: their last window still belongs to their rollout.
        self._rollouts: dict[str, str] = {}

    def add(self, served: Iterable[ServedWindow]) -> None:
        """Take drained counters in."""
        for window in served:
            total = self._window(window)
            for field in _COUNTS:
                summed = getattr(total, field) + max(getattr(window, field), 0)
                setattr(total, field, min(summed, MAX_COUNT))
            total.feedback_abs_error_sum += max(window.feedback_abs_error_sum, 0.0)
            for field, most in _MAPS.items():
                _add_names(getattr(total, field), getattr(window, field), most)
            if window.latency is not None:
                merge_histograms(total.latency_s, window.latency)

    def flush(
        self,
        end_ms: int,
        active: Iterable[ServedModel],
        use: ResourceUse | None,
        notices: Sequence[str] = (),
    ) -> list[report_pb2.Window]:
        """The windows of the span that ends now: one for each version that serves (``active``: those that answer and
        those beside), and one for any other that counted something.

        ``notices``: what is wrong with the device, said in each window.
        """
        serving = set()
        for served in active:
            self._window(served)
            self._remember(served)
            serving.add((served.manifest_sha256, served.role))
        windows = []
        for (_, manifest_sha256, role), window in self._open.items():
            counted = any(getattr(window, field) for field in _SAY_SOMETHING)
            if (manifest_sha256, role) not in serving and not counted:
                continue
            window.rollout_id = self._rollouts.get(manifest_sha256, "")
            window.start_unix_ms = min(self.start_ms, end_ms)
            window.end_unix_ms = end_ms
            window.merged = 1
            window.notices[:] = notices[:MAX_NOTICES]
            if use is not None:
                window.resources.CopyFrom(resources_proto(use))
            windows.append(window)
        self._open = {}
        self.start_ms = end_ms
        return windows

    def _remember(self, served: ServedModel) -> None:
        self._rollouts.pop(served.manifest_sha256, None)
        self._rollouts[served.manifest_sha256] = served.rollout_id
        while len(self._rollouts) > MAX_REMEMBERED:
            del self._rollouts[next(iter(self._rollouts))]

    def _window(self, of: ServedWindow | ServedModel) -> report_pb2.Window:
        key = (of.model, of.manifest_sha256, of.role)
        window = self._open.get(key)
        if window is None:
            window = self._open[key] = report_pb2.Window(
                model=of.model,
                version=of.version,
                manifest_sha256=of.manifest_sha256,
                role=of.role,
            )
        return window
