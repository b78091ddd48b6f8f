"""Absolute guards: conditions on the cohort alone, against limits the operator set.

Rules kept here: too little data is HOLD, never PASS and never FAIL; a rate is judged only above a
stated number of devices and requests; each reason says the number found and the number needed; a
rate above its limit is FAIL once the count is implausible under the limit (exact binomial tail), and
HOLD while it may be chance. The test takes requests as independent, which those of one device are
not: it keeps a handful of errors from deciding, and is no substitute for the statistical gate.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from agent.binomial import upper_tail
from fleet.rollout.gate.comparison import ComparisonGuard
from fleet.rollout.gate.door import Finding, Guard, Verdict
from fleet.rollout.gate.outcomes import LEAST_FAILED, OutcomesGuard
from fleet.rollout.gate.strata import told_apart
from fleet.rollout.snapshot import Served, Snapshot, Standing, Tally
from fleet.rollout.spec import MIN_COVERAGE, Guards

__all__ = [
    "BakeGuard",
    "CoverageGuard",
    "InstallGuard",
    "RateGuard",
    "ReleaseLimitGuard",
    "SilenceGuard",
    "guards_for",
]

IMPLAUSIBLE: Final = 0.001  # chance of such a count, or a larger one, under the limit
PLAUSIBLE: Final = 0.05


def guards_for(limits: Guards) -> tuple[Guard, ...]:
    """The guards of a rollout, in the order in which people want their reasons."""
    guards: list[Guard] = [CoverageGuard()]
    if limits.max_install_failure_rate is not None:
        guards.append(InstallGuard(limits.max_install_failure_rate, limits.min_installs))
    for name, (words, count, limit) in _rates(limits).items():
        if limit is not None:
            guards.append(RateGuard(name, words, limit, count))
    if limits.max_install_failure_rate is not None:
        guards.append(OutcomesGuard())
    if limits.compares:
        guards.append(ComparisonGuard())
    return (*guards, SilenceGuard(), ReleaseLimitGuard(), BakeGuard())


def _rates(limits: Guards) -> dict[str, tuple[str, Callable[[Served], int], float | None]]:
    return {
        "error_rate": ("the error rate", lambda s: s.failures, limits.max_error_rate),
        "over_latency_rate": (
            "the share of requests over the latency objective",
            lambda s: s.over_objective,
            limits.max_over_latency_rate,
        ),
        "output_violation_rate": (
            "the share of outputs outside the contract",
            lambda s: s.output_violations,
            limits.max_output_violation_rate,
        ),
    }


@dataclass(frozen=True, slots=True)
class InstallGuard:
    """Devices that refused, reverted, stuck or fell silent, as a share of those that have begun.

    Of those that have begun, not of those that have finished: a refusal takes seconds and a commit a
    whole probation, so among the first to finish are mostly failures. One failure among several
    devices never fails the bundle, and is let pass where the limit cannot be told from one broken
    device. When strata that are told apart exceed the limit each by itself, and the others do not,
    these are to stop alone.
    """

    limit: float
    min_installs: int
    name: str = "install_failures"

    def judge(self, snapshot: Snapshot) -> Finding:
        tally = snapshot.tally()
        failed, finished = tally.failed, tally.failed + tally.installed
        needed = max(1, min(self.min_installs, tally.reachable))
        evidence = {
            "failed": failed,
            "finished": finished,
            "reachable": tally.reachable,
            "limit": self.limit,
            "failures": dict(sorted(tally.failures.items())),
        }
        alone = _is_alone(tally)
        if self._exceeds(tally):
            blamed = self._blamed(snapshot)
            if blamed:
                told = {"stop_strata": blamed, "strata": sorted(snapshot.strata)}
                reason = self._blame(snapshot, blamed)
                return Finding(self.name, Verdict.HOLD, reason, evidence | told)
            begun = _begun(tally)
            reason = (
                f"{failed} of {begun} canary devices that have begun failed "
                f"({_share(failed, begun)}; the limit is {_percent(self.limit)}): {_causes(tally)}"
            )
            return Finding(self.name, Verdict.FAIL, reason, evidence)
        if finished < needed:
            reason = f"{finished} of the {needed} installs needed for a failure rate have finished"
            return Finding(self.name, Verdict.HOLD, reason, evidence)
        if failed > self.limit * finished:
            if alone and finished >= tally.reachable and self._may_be_chance(failed, finished):
                reason = f"{failed} of {finished} installs failed, which one broken device explains"
                return Finding(self.name, Verdict.PASS, reason, evidence)
            reason = (
                f"{failed} of the first {finished} installs failed (limit {_percent(self.limit)}); "
                f"{tally.reachable - finished} devices have not finished"
            )
            return Finding(self.name, Verdict.HOLD, reason, evidence)
        reason = f"{failed} of {finished} installs failed (limit {_percent(self.limit)})"
        return Finding(self.name, Verdict.PASS, reason, evidence)

    def _exceeds(self, tally: Tally) -> bool:
        """Whether so many have failed that the limit is broken even if every other device succeeds, or
        that so many would be implausible under it."""
        failed, finished, begun = tally.failed, tally.failed + tally.installed, _begun(tally)
        needed = max(1, min(self.min_installs, tally.reachable))
        certain = failed > self.limit * max(tally.reachable, finished)
        implausible = begun >= needed and upper_tail(failed, begun, self.limit) <= IMPLAUSIBLE
        return failed > 0 and not _is_alone(tally) and (certain or implausible)

    def _blamed(self, snapshot: Snapshot) -> list[str]:
        """The strata that explain why the limit is exceeded; none where others do it too."""
        blamed = [
            name
            for name in told_apart(snapshot).names
            if (tally := _part(snapshot, [name]).tally()).failed >= LEAST_FAILED
            and self._exceeds(tally)
        ]
        rest = _without(snapshot, blamed).tally()
        return blamed if rest.reachable and not self._exceeds(rest) else []

    def _blame(self, snapshot: Snapshot, blamed: Sequence[str]) -> str:
        """Who failed, why, and how many of the others did."""
        parts: list[str] = []
        for name in blamed:
            tally = _part(snapshot, [name]).tally()
            begun = _begun(tally)
            parts.append(
                f"{tally.failed} of {begun} canary devices of {name} that have begun failed "
                f"({_share(tally.failed, begun)}; the limit is {_percent(self.limit)})"
            )
        rest = _without(snapshot, blamed).tally()
        causes = _causes(_part(snapshot, blamed).tally())
        return f"{', '.join(parts)}, {rest.failed or 'none'} of {_begun(rest)} others: {causes}"

    def _may_be_chance(self, failed: int, finished: int) -> bool:
        return upper_tail(failed, finished, self.limit) > PLAUSIBLE


def _is_alone(tally: Tally) -> bool:
    """Whether the devices that failed are one that may be broken by itself."""
    reachable = max(tally.reachable, tally.failed + tally.installed)
    return tally.failed < LEAST_FAILED and tally.failed < reachable


def _begun(tally: Tally) -> int:
    finished = tally.failed + tally.installed
    return max(finished, tally.reachable - tally.of(Standing.WAITING))


def _causes(tally: Tally) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in sorted(tally.failures.items()))


def _part(snapshot: Snapshot, strata: Collection[str]) -> Snapshot:
    cohort = tuple(device for device in snapshot.cohort if device.stratum in strata)
    return replace(snapshot, cohort=cohort)


def _without(snapshot: Snapshot, strata: Collection[str]) -> Snapshot:
    cohort = tuple(device for device in snapshot.cohort if device.stratum not in strata)
    return replace(snapshot, cohort=cohort)


@dataclass(frozen=True, slots=True)
class RateGuard:
    """A share of all requests the cohort served with the new bundle since the stage began."""

    name: str
    words: str
    limit: float
    count: Callable[[Served], int]

    def judge(self, snapshot: Snapshot) -> Finding:
        limits = snapshot.rollout.spec.guards
        served, devices = snapshot.served()
        bad, requests = self.count(served), served.requests
        evidence = {"bad": bad, "requests": requests, "devices": devices, "limit": self.limit}
        if requests < limits.min_requests or devices < limits.min_devices or requests == 0:
            reason = (  # the same for every rate, so that it is told once
                f"{_count(requests, 'request')} on {_count(devices, 'device')} so far; rates need "
                f"{limits.min_requests} on {limits.min_devices}"
            )
            return Finding(self.name, Verdict.HOLD, reason, evidence)
        found = f"{self.words} is {_share(bad, requests)} ({bad} of {requests} requests"
        if bad > self.limit * requests:
            reason = f"{found} on {_count(devices, 'device')}); the limit is {_percent(self.limit)}"
            if upper_tail(bad, requests, self.limit) <= IMPLAUSIBLE:
                return Finding(self.name, Verdict.FAIL, reason, evidence)
            reason = f"{reason}, which may still be chance: more requests will tell"
            return Finding(self.name, Verdict.HOLD, reason, evidence)
        return Finding(self.name, Verdict.PASS, f"{found}; limit {_percent(self.limit)})", evidence)


@dataclass(frozen=True, slots=True)
class SilenceGuard:
    """Silence of both arms alike blames nobody, and lets nothing pass."""

    name: str = "silence"

    def judge(self, snapshot: Snapshot) -> Finding:
        tally = snapshot.tally()
        silent, quiet = tally.of(Standing.SILENT), tally.of(Standing.QUIET)
        control = snapshot.control
        silence_s = snapshot.rollout.spec.guards.silence_s
        evidence = {
            "silent": silent,
            "quiet": quiet,
            "control_active": control.active,
            "control_silent": control.silent,
            "silence_s": silence_s,
        }
        if quiet:
            reason = (
                f"{_count(quiet, 'canary device')} not heard from for {silence_s:g} s, in part of "
                "which no device at all was: waiting for them to come back"
            )
            return Finding(self.name, Verdict.HOLD, reason, evidence)
        if silent == 0:
            return Finding(self.name, Verdict.PASS, "no canary device is silent", evidence)
        if not tally.silence_excused:
            reason = f"{_count(silent, 'silent canary device')} counted as failed"
            return Finding(self.name, Verdict.PASS, reason, evidence)
        others = (
            f"so are {control.silent} of {control.active} devices without the bundle"
            if control.active
            else "no device without the bundle is left to compare with"
        )
        reason = (
            f"{_count(silent, 'canary device')} sent nothing for {silence_s:g} s, and {others}: "
            "check broker and network"
        )
        return Finding(self.name, Verdict.HOLD, reason, evidence)


@dataclass(frozen=True, slots=True)
class CoverageGuard:
    """Most of the devices that can be reached must serve the bundle and say how it goes."""

    name: str = "coverage"

    def judge(self, snapshot: Snapshot) -> Finding:
        tally = snapshot.tally()
        limits = snapshot.rollout.spec.guards
        reported, reachable = tally.of(Standing.REPORTED), tally.reachable
        evidence = {**tally.to_json(), "needed_share": MIN_COVERAGE}
        hold = _coverage_hold(snapshot, tally, reported)
        if hold is not None:
            return Finding(self.name, Verdict.HOLD, hold, evidence)
        if reported < limits.min_devices:
            reason = (
                f"{reported} of {reachable} canary devices have committed and reported; at least "
                f"{_count(limits.min_devices, 'device')} are needed"
            )
            return Finding(self.name, Verdict.HOLD, reason, evidence)
        reason = f"{reported} of {reachable} canary devices have committed and reported"
        return Finding(self.name, Verdict.PASS, reason, evidence)


def _coverage_hold(snapshot: Snapshot, tally: Tally, reported: int) -> str | None:
    """Why the cohort has not reported enough, or None when it has."""
    if tally.targeted == 0:
        stage = snapshot.rollout.stage_name()
        return f"no device is in the cohort of {stage}: nothing can be learned from it"
    offline = tally.of(Standing.OFFLINE)
    if tally.reachable == 0:
        return (
            f"none of the {_count(tally.targeted, 'canary device')} has been heard from for "
            f"{snapshot.rollout.spec.guards.silence_s:g} s"
        )
    if reported >= MIN_COVERAGE * tally.reachable:
        return None
    apart = f" ({offline} offline not counted)" if offline else ""
    return (
        f"{reported} of {tally.reachable} canary devices have committed and reported{apart}; "
        f"{_percent(MIN_COVERAGE)} are needed"
    )


@dataclass(frozen=True, slots=True)
class ReleaseLimitGuard:
    """The signed release may allow less than the stage asks for; devices obey the smaller."""

    name: str = "release_limit"

    def judge(self, snapshot: Snapshot) -> Finding:
        asked_bp = snapshot.rollout.current_stage.percent_bp
        allowed_bp = snapshot.limit_bp
        evidence = {"asked_bp": asked_bp, "allowed_bp": allowed_bp}
        if allowed_bp >= asked_bp:
            return Finding(self.name, Verdict.PASS, "the release allows the stage", evidence)
        reason = (
            f"the release allows {allowed_bp / 100:g} % now, the stage asks {asked_bp / 100:g} %"
        )
        if snapshot.limit_next is not None:
            at_s, next_bp = snapshot.limit_next
            reason += f"; from {_when(at_s)} it allows {next_bp / 100:g} %"
        return Finding(self.name, Verdict.HOLD, reason, evidence)


@dataclass(frozen=True, slots=True)
class BakeGuard:
    """A stage runs for its bake time, however good it looks."""

    name: str = "bake"

    def judge(self, snapshot: Snapshot) -> Finding:
        rollout = snapshot.rollout
        ends_s = rollout.stage_started_s + rollout.current_stage.bake_s
        evidence = {"ends_s": ends_s, "bake_s": rollout.current_stage.bake_s}
        if snapshot.now_s < ends_s:
            reason = f"{rollout.stage_name()} bakes until {_when(ends_s)}"
            return Finding(self.name, Verdict.HOLD, reason, evidence)
        reason = f"{rollout.stage_name()} has baked for {rollout.current_stage.bake_s:g} s"
        return Finding(self.name, Verdict.PASS, reason, evidence)


_TIME_FORMAT: Final = "%Y-%m-%d %H:%M:%S UTC"


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime(_TIME_FORMAT)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _percent(share: float) -> str:
    return f"{share * 100:g} %"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "no share"
