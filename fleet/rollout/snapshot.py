"""Everything a decision looks at, as values: one rollout, its cohort and its control, at one time.

Rules kept here: a device belongs to the arm its hash puts it in, whatever it did afterwards; each
device of the cohort has exactly one standing; one that may try again has not failed yet; silence is
held against the bundle only when the other devices, and this fleet manager, were not silent too.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from fleet.rollout.record import Rollout
from fleet.rollout.silence import is_excused
from fleet.rollout.spec import ALL_BP, StageKind

if TYPE_CHECKING:
    from fleet.rollout.frozen import Evidence

__all__ = [
    "AT_RISK",
    "CheckAnswer",
    "ControlArm",
    "DeviceView",
    "Served",
    "Snapshot",
    "Standing",
    "Tally",
    "total",
]

AT_RISK: Final = frozenset({"swap", "probation", "commit"})  # phases in which the bundle serves
BESIDE: Final = "beside"  # phase in which the bundle is loaded, and another one answers
FAILED_OUTCOMES: Final = frozenset({"refused", "reverted"})


@dataclass(frozen=True, slots=True)
class Served:
    """Counts of requests since the stage began; ``last_window_s`` is when the newest one came in."""

    requests: int = 0
    failures: int = 0
    over_objective: int = 0
    output_violations: int = 0
    last_window_s: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device of the cohort. ``phase`` "" means that it has not begun.

    ``serves`` is true when the device last said that the new bundle is its active one. ``stratum`` is
    its class with its execution provider; "" where that is not known. ``tries`` counts how often it
    has refused or reverted the bundle in this rollout; 0 where that is not known. ``begun_s``: when it
    was first heard to have begun in this stage; 0 where that makes no difference yet.
    """

    device_id: str
    last_heard_s: float
    phase: str = ""
    outcome: str = ""
    reason_code: str = ""
    reason: str = ""
    committed_s: float | None = None
    serves: bool = False
    served: Served = field(default_factory=Served)
    stratum: str = ""
    tries: int = 0
    begun_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ControlArm:
    """The devices that match the selector and are not in the cohort.

    ``active`` were heard from around the time the stage began, or since; ``silent`` of them have
    not been for the silence time. The counts are those of whatever they serve.
    """

    devices: int = 0
    active: int = 0
    silent: int = 0
    served: Served = field(default_factory=Served)


@dataclass(frozen=True, slots=True)
class CheckAnswer:
    """What an external check answered last about this run of the stage. ``verdict``: pass, hold or fail."""

    url: str
    stage_started_s: float
    asked_s: float
    answered_s: float
    verdict: str
    reason: str


class Standing(StrEnum):
    """Where one device of the cohort stands; exactly one each."""

    OFFLINE = "offline"  # not heard from, and not serving the bundle as far as is known
    WAITING = "waiting"  # reachable, has not begun
    UNDER_WAY = "under_way"
    COMMITTED = "committed"  # serves the bundle, no window since
    REPORTED = "reported"  # serves the bundle and has reported a window since
    QUIET = "quiet"  # as silent, but for part of the time nobody was heard: not its fault
    SILENT = "silent"  # serves the bundle, or was about to, and sent nothing for the silence time
    REFUSED = "refused"
    REVERTED = "reverted"
    STUCK = "stuck"  # began, and has not finished by the deadline


@dataclass(frozen=True, slots=True)
class Tally:
    """The cohort, counted. ``failures`` says why, by standing and reason code."""

    targeted: int
    standings: Mapping[Standing, int]
    failures: Mapping[str, int]
    silence_excused: bool

    def of(self, *standings: Standing) -> int:
        return sum(self.standings.get(standing, 0) for standing in standings)

    @property
    def reachable(self) -> int:
        """Devices a stage can expect something of."""
        return self.targeted - self.of(Standing.OFFLINE)

    @property
    def failed(self) -> int:
        failed = self.of(Standing.REFUSED, Standing.REVERTED, Standing.STUCK)
        return failed if self.silence_excused else failed + self.of(Standing.SILENT)

    @property
    def installed(self) -> int:
        return self.of(Standing.COMMITTED, Standing.REPORTED)

    def to_json(self) -> dict[str, Any]:
        return {
            "targeted": self.targeted,
            "reachable": self.reachable,
            "installed": self.installed,
            "reported": self.of(Standing.REPORTED),
            "failed": self.failed,
            "standings": {str(name): count for name, count in sorted(self.standings.items())},
            "failures": dict(sorted(self.failures.items())),
            "silence_excused": self.silence_excused,
        }


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One rollout at ``now_s``.

    ``listening_since_s`` is when this fleet manager began to take reports: what it could not have
    heard is no silence. ``limit_bp`` is the share the release itself allows by now, and
    ``limit_next`` the time and share of its next step, if there is one. ``evidence`` is what the
    comparison of the arms has found; None while the stage has no ring. ``checks`` has the newest answer of
    each external check that has answered. ``strata`` counts the devices of both arms by stratum,
    without those that were stopped.
    """

    rollout: Rollout
    cohort: tuple[DeviceView, ...]
    control: ControlArm
    now_s: float
    listening_since_s: float = 0.0
    limit_bp: int = ALL_BP
    limit_next: tuple[float, int] | None = None
    evidence: "Evidence | None" = None
    checks: tuple[CheckAnswer, ...] = ()
    strata: Mapping[str, int] = field(default_factory=dict)

    def standing(self, device: DeviceView) -> Standing:
        """Where this device of the cohort stands."""
        if device.outcome in FAILED_OUTCOMES:
            again = self._may_try_again(device)
            return Standing.WAITING if again else Standing(device.outcome)
        committed = device.outcome == "committed" or (device.serves and not device.phase)
        committed = committed or self._is_placed(device)
        silence_s = self.rollout.spec.guards.silence_s
        heard = self.now_s - device.last_heard_s <= silence_s
        if committed or (device.phase in AT_RISK and not device.outcome):
            if not heard:
                listened_s = self.now_s - max(device.last_heard_s, self.listening_since_s)
                return Standing.SILENT if listened_s > silence_s else Standing.QUIET
            if committed:
                return Standing.REPORTED if self._has_reported(device) else Standing.COMMITTED
        if not heard:
            return Standing.OFFLINE
        if device.phase in ("", "idle") or device.outcome:  # cancelled: it may begin again
            return Standing.WAITING
        is_late = self.now_s > self.rollout.deadline_of(device.begun_s)
        return Standing.STUCK if is_late else Standing.UNDER_WAY

    def tally(self) -> Tally:
        """Count the cohort."""
        standings: Counter[Standing] = Counter()
        failures: Counter[str] = Counter()
        for device in self.cohort:
            standing = self.standing(device)
            standings[standing] += 1
            if standing in (Standing.REFUSED, Standing.REVERTED):
                failures[f"{standing} ({device.reason_code or 'no reason given'})"] += 1
            elif standing in (Standing.STUCK, Standing.SILENT):
                failures[str(standing)] += 1
        return Tally(len(self.cohort), standings, failures, self._silence_excused(standings))

    def served(self) -> tuple[Served, int]:
        """What the cohort served with the new bundle, added up, and by how many devices."""
        return total(device.served for device in self.cohort)

    def _may_try_again(self, device: DeviceView) -> bool:
        """Whether a device that failed has tries left, and until the deadline time to use them."""
        if not 0 < device.tries <= self.rollout.spec.retries:
            return False
        heard = self.now_s - device.last_heard_s <= self.rollout.spec.guards.silence_s
        return heard and self.now_s <= self.rollout.deadline_of(device.begun_s)

    def _is_placed(self, device: DeviceView) -> bool:
        """Whether it holds the bundle beside the one that answers, where the stage asks for no more."""
        is_beside = device.phase == BESIDE and not device.outcome
        return is_beside and self.rollout.current_stage.is_beside

    def _has_reported(self, device: DeviceView) -> bool:
        if self.rollout.current_stage.kind is StageKind.STANDBY:  # it serves nothing to report of
            return device.last_heard_s >= self.rollout.stage_started_s
        if device.served.last_window_s is None:
            return False
        return device.served.last_window_s >= max(
            device.committed_s or 0.0, self.rollout.stage_started_s
        )

    def _silence_excused(self, standings: Mapping[Standing, int]) -> bool:
        """Whether the others are silent as well, so that the bundle cannot be blamed for it."""
        silent = standings.get(Standing.SILENT, 0)
        heard = (Standing.COMMITTED, Standing.REPORTED, Standing.UNDER_WAY)
        at_risk = silent + sum(standings.get(standing, 0) for standing in heard)
        return is_excused(at_risk, silent, self.control.active, self.control.silent)


def total(parts: Iterable[Served]) -> tuple[Served, int]:
    """The sum of all counts, and how many of the parts had requests at all."""
    requests = failures = over = violations = devices = 0
    newest: float | None = None
    for part in parts:
        requests += part.requests
        failures += part.failures
        over += part.over_objective
        violations += part.output_violations
        devices += part.requests > 0
        if part.last_window_s is not None:
            newest = max(newest or 0.0, part.last_window_s)
    return Served(requests, failures, over, violations, newest), devices
