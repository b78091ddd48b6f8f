"""What one device last reported, for people: newest first, numbers instead of wire formats."""

from typing import Any

from sqlalchemy import Connection, select

from fleet.store.tables import deployment_events, deployments, windows
from protos import report_pb2

__all__ = ["last_events", "last_windows", "latest_steps", "quantile_s"]


def latest_steps(connection: Connection, device_id: str) -> list[dict[str, Any]]:
    """The newest known step of a device in each rollout."""
    query = (
        select(deployments)
        .where(deployments.c.device_id == device_id)
        .order_by(deployments.c.updated_s.desc(), deployments.c.rollout_id)
    )
    return [row._asdict() for row in connection.execute(query)]


def last_events(connection: Connection, device_id: str, limit: int) -> list[dict[str, Any]]:
    """The last steps a device reported, with reasons and measures."""
    query = (
        select(deployment_events)
        .where(deployment_events.c.device_id == device_id)
        .order_by(
            deployment_events.c.received_s.desc(),
            deployment_events.c.at_ms.desc(),
            deployment_events.c.seq.desc(),
        )
        .limit(limit)
    )
    return [row._asdict() for row in connection.execute(query)]


def last_windows(connection: Connection, device_id: str, limit: int) -> list[dict[str, Any]]:
    """The last telemetry windows of a device; the latency as its median and 99th percentile."""
    query = (
        select(windows)
        .where(windows.c.device_id == device_id)
        .order_by(windows.c.end_ms.desc(), windows.c.seq.desc())
        .limit(limit)
    )
    found = []
    for row in connection.execute(query):
        window = row._asdict()
        histogram = report_pb2.Histogram.FromString(window.pop("latency"))
        for name, share in (("latency_p50_ms", 0.5), ("latency_p99_ms", 0.99)):
            value_s = quantile_s(histogram, share)
            window[name] = None if value_s is None else round(value_s * 1000, 3)
        found.append(window)
    return found


def quantile_s(histogram: report_pb2.Histogram, share: float) -> float | None:
    """An upper bound of the quantile ``share`` (0 to 1), in seconds; None for an empty histogram.

    Bucket i of an exponential histogram holds values in (base**i, base**(i+1)] with
    base = 2**(2**-scale) (OpenTelemetry metrics data model).
    """
    total = histogram.zero_count + sum(histogram.counts)
    if total == 0:
        return None
    rank = share * total
    seen = histogram.zero_count
    if seen >= rank:
        return 0.0
    for index, count in enumerate(histogram.counts):
        seen += count
        if seen >= rank:
            # The exponent may lie far outside of what a float holds: a device's number, not ours.
            exponent = (histogram.offset + index + 1) * 2.0 ** -max(-10, min(20, histogram.scale))
            bound: float = 2.0 ** max(-1000.0, min(1000.0, exponent))
            return min(bound, float(histogram.max)) if histogram.max > 0 else bound
    return float(histogram.max)
