"""Windows of telemetry: drained counters add up to report windows, report windows add up to older ones.

Rules kept here:
- Windows merge by addition; merging keeps every request in the sum and says how many windows went in (``merged``).
- Histograms of different resolution merge at the coarser one; a histogram never has more than ``MAX_BUCKETS`` buckets.
- Error kinds are bounded by ``MAX_ERROR_KINDS``; what does not fit is counted as ``OTHER_ERRORS``.
- An active model yields a window even without one request: silence must mean that something is wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.ports import ResourceUse, ServedWindow
from protos import report_pb2

__all__ = [
    "MAX_BUCKETS",
    "MAX_ERROR_KINDS",
    "MAX_NOTICES",
    "OTHER_ERRORS",
    "ServedModel",
    "WindowAccumulator",
    "merge_histograms",
    "merge_windows",
    "resources_proto",
]

MAX_BUCKETS: Final = 160
MAX_ERROR_KINDS: Final = 32
OTHER_ERRORS: Final = "other"
MAX_KIND_CHARS: Final = 64
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
        ValueError: they are not of the same model, manifest and rollout.
    """
    if _key(older) != _key(newer):
        raise ValueError(f"windows of {_key(older)} and {_key(newer)} do not add up")
    merged = report_pb2.Window()
    merged.CopyFrom(newer)
    merged.start_unix_ms = min(older.start_unix_ms, newer.start_unix_ms)
    merged.end_unix_ms = max(older.end_unix_ms, newer.end_unix_ms)
    for field in _COUNTERS:
        setattr(merged, field, getattr(older, field) + getattr(newer, field))
    _add_kinds(merged, older.error_kinds)
    if older.HasField("latency_s"):
        merge_histograms(merged.latency_s, older.latency_s)
    notices = dict.fromkeys((*newer.notices, *older.notices))
    merged.notices[:] = list(notices)[:MAX_NOTICES]
    if not newer.HasField("resources") and older.HasField("resources"):
        merged.resources.CopyFrom(older.resources)
    merged.merged = max(older.merged, 1) + max(newer.merged, 1)
    return merged


_COUNTERS: Final = (
    "requests",
    "failures",
    "over_objective",
    "input_violations",
    "output_violations",
    "non_finite",
    "feedback_count",
    "feedback_correct",
    "feedback_abs_error_sum",
    "feedback_unknown",
)


def _key(window: report_pb2.Window) -> tuple[str, str, str]:
    return (window.model, window.manifest_sha256, window.rollout_id)


def _add_kinds(window: report_pb2.Window, kinds: Mapping[str, int]) -> None:
    for kind, count in kinds.items():
        name = kind[:MAX_KIND_CHARS]
        if name not in window.error_kinds and len(window.error_kinds) >= MAX_ERROR_KINDS - 1:
            name = OTHER_ERRORS
        window.error_kinds[name] += count


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
        self._open: dict[tuple[str, str], report_pb2.Window] = {}
        # Also of versions that have just been replaced: their last window still belongs to their rollout.
        self._rollouts: dict[str, str] = {}

    def add(self, served: Iterable[ServedWindow]) -> None:
        """Take drained counters in."""
        for window in served:
            total = self._window(window.model, window.version, window.manifest_sha256)
            for field in _COUNTERS:
                setattr(total, field, getattr(total, field) + max(getattr(window, field), 0))
            _add_kinds(total, window.error_kinds)
            if window.latency is not None:
                merge_histograms(total.latency_s, window.latency)

    def flush(
        self,
        end_ms: int,
        active: Iterable[ServedModel],
        use: ResourceUse | None,
        notices: Sequence[str] = (),
    ) -> list[report_pb2.Window]:
        """The windows of the span that ends now, one an active model and one any other that counted something.

        ``notices``: what is wrong with the device, said in each window.
        """
        serving = set()
        for served in active:
            self._window(served.model, served.version, served.manifest_sha256)
            self._remember(served)
            serving.add(served.manifest_sha256)
        windows = []
        for (_, manifest_sha256), window in self._open.items():
            counted = window.requests or window.input_violations or window.feedback_count
            if manifest_sha256 not in serving and not counted:
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

    def _window(self, model: str, version: str, manifest_sha256: str) -> report_pb2.Window:
        key = (model, manifest_sha256)
        window = self._open.get(key)
        if window is None:
            window = report_pb2.Window(
                model=model, version=version, manifest_sha256=manifest_sha256
            )
            self._open[key] = window
        return window
