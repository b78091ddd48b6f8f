"""What a world has come to: counted while reports are made, shown while it runs, summed up at its end.

Rules: counters rise where a report is put into a device's spool, so a report that is sent twice is
counted once, and one that never arrives is counted as well.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.health.spool import MemorySpool, SpoolLimits
from protos import report_pb2

__all__ = ["ObservedSpool", "Progress", "Summary", "Tally", "summary_json"]


def _word(name: str) -> str:
    """``committed`` for OUTCOME_COMMITTED."""
    return name.partition("_")[2].lower()


@dataclass(slots=True)
class Tally:
    """Deployments of all devices: where those under way are, and how the others ended."""

    phases: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    reports: int = 0

    def moved(self, before: str, event: report_pb2.DeploymentEvent) -> str:
        """Count a step of a deployment that was in phase ``before``; return its phase now ("" is over)."""
        if before:
            self.phases[before] -= 1
        if event.outcome == report_pb2.OUTCOME_UNSPECIFIED:
            phase = _word(report_pb2.Phase.Name(event.phase))
            self.phases[phase] += 1
            return phase
        self.outcomes[_word(report_pb2.Outcome.Name(event.outcome))] += 1
        if event.reason_code:
            self.reasons[event.reason_code] += 1
        return ""


class ObservedSpool(MemorySpool):
    """A device's spool, of which the world takes note. Under way is one deployment a model."""

    __slots__ = ("_phases", "_tally")

    def __init__(self, limits: SpoolLimits, tally: Tally) -> None:
        super().__init__(limits)
        self._tally = tally
        self._phases: dict[str, str] = {}

    def put(self, report: report_pb2.Report) -> None:
        self._tally.reports += 1
        if report.WhichOneof("body") == "deployment":
            event = report.deployment
            phase = self._tally.moved(self._phases.pop(event.deployment_id, ""), event)
            if phase:
                self._phases[event.deployment_id] = phase
        super().put(report)


@dataclass(frozen=True, slots=True)
class Progress:
    """A look at a running world. ``serving``: devices by ``model version``."""

    elapsed_s: float
    devices: int
    connected: int
    serving: Mapping[str, int]
    phases: Mapping[str, int]
    outcomes: Mapping[str, int]
    reports_sent: int
    unacknowledged: int

    def line(self) -> str:
        """One line of text for people."""
        parts = [f"{self.elapsed_s:6.0f} s", f"{self.connected}/{self.devices} connected"]
        parts += [f"{what}: {count}" for what, count in sorted(self.serving.items())]
        if self.phases:
            under_way = ", ".join(f"{count} {phase}" for phase, count in self.phases.items())
            parts.append(f"under way: {under_way}")
        if self.outcomes:
            ended = ", ".join(
                f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items())
            )
            parts.append(f"ended: {ended}")
        parts.append(f"reports: {self.reports_sent} sent, {self.unacknowledged} waiting")
        return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a world did, at its end.

    ``device_rss_bytes``: how much the process has grown since before the first device, a device;
    ``device_rss_peak_bytes``: the same at the moment it was largest.
    """

    devices: int
    seed: int
    elapsed_s: float
    connected_peak: int
    connects: int
    cuts: int
    reports_made: int
    reports_sent: int
    reports_acknowledged: int
    reports_unacknowledged: int
    reports_lost: int
    reports_silenced: int
    deployments: Mapping[str, int]
    under_way: Mapping[str, int]
    reasons: Mapping[str, int]
    serving: Mapping[str, int]
    bytes_fetched: int
    grpc_calls: int
    trust_refreshes: int
    trust_verifications: int
    failed_devices: int
    cpu_s: float
    rss_bytes: int
    device_rss_bytes: int
    device_rss_peak_bytes: int

    def rows(self) -> list[tuple[str, str]]:
        """The table for people."""
        rows: list[tuple[str, str]] = [
            ("devices", f"{self.devices}, at most {self.connected_peak} connected at once"),
            ("time", f"{self.elapsed_s:.1f} s, {self.cpu_s:.1f} s of CPU, seed {self.seed}"),
            (
                "memory",
                f"{self.rss_bytes / 1e6:.0f} MB; {self.device_rss_bytes / 1024:.0f} KiB a device, "
                f"{self.device_rss_peak_bytes / 1024:.0f} KiB at most",
            ),
            ("connections", f"{self.connects} made, {self.cuts} cut by the scenario"),
            (
                "reports",
                f"{self.reports_made} made, {self.reports_acknowledged} acknowledged, "
                f"{self.reports_unacknowledged} waiting",
            ),
            ("deployments", _listed(self.deployments)),
            ("under way", _listed(self.under_way)),
            ("reasons", _listed(self.reasons)),
            ("serving", _listed(self.serving)),
            (
                "fetched",
                f"{self.bytes_fetched / 1e6:.2f} MB over {self.grpc_calls} gRPC connections",
            ),
            (
                "trust",
                f"{self.trust_refreshes} refreshes, {self.trust_verifications} of them not seen before",
            ),
        ]
        if self.reports_lost or self.reports_silenced:
            lost = f"{self.reports_lost} lost, {self.reports_silenced} held back by silent devices"
            rows.insert(5, ("network", lost))
        if self.failed_devices:
            rows.append(("failed", f"{self.failed_devices} devices ended with an error"))
        return rows


def summary_json(summary: Summary) -> dict[str, object]:
    """The same for machines."""
    values = {name: getattr(summary, name) for name in Summary.__dataclass_fields__}
    return {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()
    }


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "none"
