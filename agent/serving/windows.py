"""What one drain carries to the supervisor: what each version counted, was told and has under way.

Rules kept here:

- Counts come from three places (the version's own counters, the truth that applications give, their own counters) and
  leave as one window a version and role.
- A version that only applications spoke of gets a window too.
- ``stuck`` is no count: it is how many runs of the version take longer than its latency objective right now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from agent.runtime.counters import Counts
from agent.runtime.registry import Registry, VersionWindow
from agent.serving.counting import CountLog
from agent.serving.feedback import FeedbackCounts, FeedbackLog, Version

__all__ = ["drained_windows", "merged_windows"]

Window = dict[str, Any]


def drained_windows(
    registry: Registry, feedback: FeedbackLog, counters: CountLog, stuck: Mapping[str, int]
) -> list[Window]:
    """Everything counted since the last drain, as the control channel carries it. ``stuck``: runs that take too long
    now, by manifest digest."""
    windows = [_to_json(window) for window in registry.drain()]
    for window in windows:
        if not window["role"] or window["role"] == "arm":
            window["stuck"] = stuck.get(window["manifest_sha256"], 0)
    return merged_windows(windows, feedback.drain(), counters.drain())


def merged_windows(
    windows: Sequence[Window],
    judged: Mapping[Version, FeedbackCounts],
    counted: Mapping[Version, Mapping[str, int]],
) -> list[Window]:
    """Windows with what applications said; a version without one gets one."""
    said: dict[Version, Window] = {version: asdict(counts) for version, counts in judged.items()}
    for version, counts in counted.items():
        said.setdefault(version, {})["counters"] = dict(counts)
    left = {(version.manifest_sha256, version.role): (version, it) for version, it in said.items()}
    merged = []
    for window in windows:
        _, told = left.pop((window["manifest_sha256"], window["role"]), (None, {}))
        merged.append({**window, **told})
    for version, told in left.values():
        merged.append({**_counts(Counts()), **asdict(version), **told})
    return merged


def _to_json(window: VersionWindow) -> Window:
    return {
        **_counts(window.counts),
        "model": window.model,
        "version": window.version,
        "manifest_sha256": window.manifest_sha256,
        "role": window.role,
    }


def _counts(counts: Counts) -> Window:
    latency = counts.latency
    return {**asdict(counts), "latency": None if latency is None else latency.to_json()}
