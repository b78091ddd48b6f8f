"""Reports as devices send them, for tests of whoever receives them."""

from typing import Any

from protos import report_pb2

DIGEST = "ab" * 32
START_MS = 1_700_000_000_000


def window(device: str = "d1", seq: int = 1, boot: str = "b1", **fields: Any) -> report_pb2.Report:
    """A plausible telemetry window; ``fields`` replace its own."""
    values: dict[str, Any] = {
        "model": "digits",
        "version": "1.0.0",
        "manifest_sha256": DIGEST,
        "rollout_id": "r1",
        "start_unix_ms": START_MS,
        "end_unix_ms": START_MS + 60_000,
        "requests": 100,
        "failures": 1,
        "over_objective": 2,
        "error_kinds": {"runtime": 1},
        "latency_s": report_pb2.Histogram(scale=3, offset=-60, counts=[50, 50], sum=0.5, max=0.008),
        "resources": report_pb2.Resources(rss_bytes=1000, cpu_percent=12.5),
        "merged": 1,
    }
    return report_pb2.Report(
        device_id=device,
        boot_id=boot,
        seq=seq,
        created_unix_ms=START_MS + seq,
        window=report_pb2.Window(**(values | fields)),
    )


def event(
    device: str = "d1",
    seq: int = 1,
    boot: str = "b1",
    *,
    phase: str = "fetch",
    outcome: str = "unspecified",
    at_ms: int | None = None,
    **fields: Any,
) -> report_pb2.Report:
    """One step of a device; ``phase`` and ``outcome`` in lower case without their prefixes."""
    values: dict[str, Any] = {
        "deployment_id": f"{device}-1",
        "rollout_id": "r1",
        "model": "digits",
        "bundle": "bundles/edge/digits-1.0.0",
        "manifest_sha256": DIGEST,
        "attempt": 1,
    }
    return report_pb2.Report(
        device_id=device,
        boot_id=boot,
        seq=seq,
        created_unix_ms=START_MS + seq if at_ms is None else at_ms,
        deployment=report_pb2.DeploymentEvent(
            phase=report_pb2.Phase.Value(f"PHASE_{phase.upper()}"),
            outcome=report_pb2.Outcome.Value(f"OUTCOME_{outcome.upper()}"),
            **(values | fields),
        ),
    )


def inventory(
    device: str = "d1", seq: int = 1, boot: str = "b1", *, at_ms: int | None = None, **fields: Any
) -> report_pb2.Report:
    """What a device says about itself."""
    values: dict[str, Any] = {
        "device_class": "edge",
        "hardware": "x86_64",
        "labels": {"site": "lab"},
        "agent_version": "0.1.0",
        "onnxruntime_version": "1.20.0",
        "memory_bytes": 2**30,
        "cpu_count": 4,
        "operating_system": "Debian 12",
        "active": [report_pb2.ActiveModel(model="digits", version="1.0.0", manifest_sha256=DIGEST)],
    }
    return report_pb2.Report(
        device_id=device,
        boot_id=boot,
        seq=seq,
        created_unix_ms=START_MS + seq if at_ms is None else at_ms,
        inventory=report_pb2.Inventory(**(values | fields)),
    )


def batch(*reports: report_pb2.Report) -> report_pb2.ReportBatch:
    return report_pb2.ReportBatch(reports=reports)
