"""Reports of virtual devices as the fleet manager's own parsed reports: columns in, rows out.

Rules kept here: each kind of report has one template, parsed by the fleet's own parser, and a row is
the template with what differs, so that a new column of the fleet is there by itself; numbers of
reports count up over the world, so that none is there twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import numpy as np

from agent.trust import BundleRelease
from fleet.monitor.reports import Kind, ParsedReport, parse_report
from protos import report_pb2
from simulator.virtual.characters import DAY_S
from simulator.virtual.counting import History
from simulator.virtual.windows import Events, Ints, Outcome, Windows

__all__ = ["BOOT_ID", "Reporter", "Serving"]

BOOT_ID: Final = "virtual"
_MS: Final = 1000

# How a step of a deployment looks in a report: phase, outcome, code, and what it says.
_STEPS: Final[dict[int, tuple[str, str, str, str]]] = {
    Outcome.COMMITTED: ("commit", "committed", "", ""),
    Outcome.REFUSED: ("try", "refused", "trial_golden_failed", "the trial's answer differs"),
    Outcome.REVERTED: ("probation", "reverted", "probation_error_rate", "too many errors"),
}


@dataclass(frozen=True, slots=True)
class Serving:
    """A bundle on devices, and the rollout that brought it."""

    release: BundleRelease
    rollout_id: str


class Reporter:
    """Makes the reports of one world. ``epoch_s`` is the time of the fleet when the world is at 0."""

    def __init__(self, ids: tuple[str, ...], kinds: tuple[str, ...], epoch_s: float) -> None:
        self._ids = ids
        self._kinds = kinds
        self._epoch_ms = round(epoch_s * _MS)
        self._numbers = count(1)

    def inventories(self, devices: Ints, serving: Serving, at_s: float) -> list[ParsedReport]:
        """What each device is and serves."""
        at_ms = self._ms(at_s)
        release = serving.release
        active = {
            "model": release.model,
            "version": release.version,
            "manifest_sha256": release.sha256,
            "rollout_id": serving.rollout_id,
        }
        found = []
        for device in devices.tolist():
            report = report_pb2.Report(
                device_id=self._ids[device],
                boot_id=BOOT_ID,
                seq=next(self._numbers),
                created_unix_ms=at_ms,
                inventory=report_pb2.Inventory(
                    device_class=release.device_class,
                    hardware="x86_64",
                    execution_provider=self._kinds[device].partition("/")[2],
                    memory_bytes=2**31,
                    disk_free_bytes=2**33,
                    cpu_count=2,
                    operating_system="simulated",
                    active=[report_pb2.ActiveModel(**active)],
                ),
            )
            found.append(parse_report(report, self._ids[device]))
        return found

    def windows(self, windows: Windows, old: Serving, new: Serving) -> Iterator[ParsedReport]:
        """One report a window, of the bundle that answered in it."""
        templates = [self._window(serving) for serving in (old, new)]
        columns = zip(
            windows.device.tolist(),
            windows.candidate.tolist(),
            (windows.start_s * _MS).astype(np.int64).tolist(),
            (windows.end_s * _MS).astype(np.int64).tolist(),
            windows.requests.tolist(),
            windows.failures.tolist(),
            windows.over_objective.tolist(),
            windows.compared.tolist(),
            (windows.compared - windows.wrong).tolist(),
            strict=True,
        )
        for device, is_new, start, end, requests, failures, over, compared, right in columns:
            differs = {
                "start_ms": self._epoch_ms + start,
                "end_ms": self._epoch_ms + end,
                "requests": requests,
                "failures": failures,
                "over_objective": over,
                "feedback_count": compared,
                "feedback_correct": right,
            }
            yield self._report(Kind.WINDOW, device, templates[is_new], differs)

    def history(self, past: History, serving: Serving) -> Iterator[ParsedReport]:
        """The day before the world, as one merged window a device."""
        template = self._window(serving)
        merged = {"merged": round(DAY_S / 60), "start_ms": self._epoch_ms - round(DAY_S * _MS)}
        columns = zip(
            past.total["error_rate"].tolist(),
            past.bad["error_rate"].tolist(),
            past.bad["over_latency_rate"].tolist(),
            past.total["feedback_error_rate"].tolist(),
            past.bad["feedback_error_rate"].tolist(),
            strict=True,
        )
        for device, (requests, failures, over, compared, wrong) in enumerate(columns):
            differs = {
                "end_ms": self._epoch_ms,
                "requests": requests,
                "failures": failures,
                "over_objective": over,
                "feedback_count": compared,
                "feedback_correct": compared - wrong,
            }
            yield self._report(Kind.WINDOW, device, template, merged | differs)

    def begun(self, devices: Ints, serving: Serving, at_s: float) -> Iterator[ParsedReport]:
        """The first step of a deployment."""
        template = self._event(serving) | {"phase": "fetch", "at_ms": self._ms(at_s)}
        for device in devices.tolist():
            yield self._deployment(device, template, serving)

    def ended(self, events: Events, serving: Serving) -> Iterator[ParsedReport]:
        """The last step of a deployment. What the fleet itself has taken back is no step of it."""
        if not len(events):
            return
        template = self._event(serving)
        for device, at_s, outcome in zip(
            events.device.tolist(), events.at_s.tolist(), events.outcome.tolist(), strict=True
        ):
            if outcome not in _STEPS:
                continue
            phase, word, code, reason = _STEPS[outcome]
            step = {"phase": phase, "outcome": word, "reason_code": code, "reason": reason}
            yield self._deployment(
                device, template | step | {"at_ms": self._ms(float(at_s))}, serving
            )

    # --- one report ---------------------------------------------------------------------------------

    def _ms(self, at_s: float) -> int:
        return self._epoch_ms + round(at_s * _MS)

    def _deployment(self, device: int, template: dict[str, Any], serving: Serving) -> ParsedReport:
        named = {"deployment_id": f"{serving.rollout_id}-{device}"}
        return self._report(Kind.EVENT, device, template, named)

    def _report(
        self, kind: Kind, device: int, template: dict[str, Any], differs: dict[str, Any]
    ) -> ParsedReport:
        name, number = self._ids[device], next(self._numbers)
        row = {**template, **differs, "device_id": name, "seq": number}
        created_ms = row["end_ms"] if kind is Kind.WINDOW else row["at_ms"]
        return ParsedReport(kind, name, BOOT_ID, number, created_ms, row)

    def _window(self, serving: Serving) -> dict[str, Any]:
        release = serving.release
        window = report_pb2.Window(
            model=release.model,
            version=release.version,
            manifest_sha256=release.sha256,
            rollout_id=serving.rollout_id,
            merged=1,
        )
        return self._template(report_pb2.Report(window=window))

    def _event(self, serving: Serving) -> dict[str, Any]:
        release = serving.release
        event = report_pb2.DeploymentEvent(
            deployment_id="template",
            rollout_id=serving.rollout_id,
            model=release.model,
            bundle=release.path,
            manifest_sha256=release.sha256,
            phase=report_pb2.PHASE_FETCH,
            attempt=1,
        )
        return self._template(report_pb2.Report(deployment=event))

    def _template(self, report: report_pb2.Report) -> dict[str, Any]:
        report.device_id, report.boot_id, report.seq = self._ids[0], BOOT_ID, 1
        return dict(parse_report(report, self._ids[0]).row)
