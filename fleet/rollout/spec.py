"""What an operator asks for: one bundle, to which devices, in which stages, under which guards.

Rules kept here: values only, checked by ``parsing``; whatever depends on the fleet (a stage asked for
as a number of devices, the hold-back, how long a ramp takes) is decided once, when the rollout is
created (``resolving``), and kept in the spec, so that it means the same ever after.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

from fleet.errors import RequestError

__all__ = [
    "ALL_BP",
    "AUTO",
    "DEFAULT_METRICS",
    "DEFAULT_STAGES",
    "MIN_COVERAGE",
    "Check",
    "Guards",
    "RolloutSpec",
    "Stage",
    "StageKind",
    "Statistics",
    "Strategy",
    "bundle_class",
    "selectors_overlap",
]

ALL_BP: Final = 10_000  # basis points: 100 %
MIN_COVERAGE: Final = 0.8  # share of the reachable cohort that must have committed and reported
AUTO: Final = "auto"
_BUNDLE: Final = re.compile(r"bundles/([a-z0-9-]{1,40})/([a-z0-9][a-z0-9-]{0,62})-([\w.-]{1,64})")


class Strategy(StrEnum):
    """How a bundle gets to the devices; what each stage of it may be is in ``strategies``."""

    CANARY = "canary"
    SHADOW_THEN_CANARY = "shadow-then-canary"
    AB = "ab"
    BLUE_GREEN = "blue-green"
    ALL_AT_ONCE = "all-at-once"


class StageKind(StrEnum):
    """What the bundle does on the devices of a stage. All but ``canary`` hold it beside the old one."""

    CANARY = "canary"  # it answers
    SHADOW = "shadow"  # it gets copies of requests, and nobody sees its answers
    AB = "ab"  # it answers a share of the requests
    STANDBY = "standby"  # it is loaded and waits for the flip


class Statistics(StrEnum):
    """Whether a stage needs the comparison with control to go on.

    ``auto``: where the stage can be expected to see the tolerated change, and absolute limits alone
    where it cannot; ``on``: always, so a stage that cannot see it holds; ``off``: never.
    """

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Stage:
    """A share of the fleet, and how long it runs before the next one.

    Attributes:
        percent_bp: share of the devices in this stage, in basis points; 0 until the rollout is
            created where ``devices`` says how many.
        bake_s: how long the stage runs at least. What was asked for counts from the end of the ramp:
            the ramp is added when the rollout is created.
        kind: what the bundle does on them.
        devices: how many devices were asked for; 0 where a share was.
        traffic_bp: share of requests that the bundle gets (shadow: copies) while it is held beside.
        approval: a person must approve before this stage begins.
        devices_per_minute: at most so many devices begin in a minute; 0 for no limit.
        ramp: ``linear`` (the same number every minute) or ``exponential`` (doubling, and the limit is
            reached at the end); "" without a limit.
        ramp_s, ramp_doublings: what follows from the three, decided when the rollout is created.
    """

    percent_bp: int
    bake_s: float
    kind: StageKind = StageKind.CANARY
    devices: int = 0
    traffic_bp: int = 0
    approval: bool = False
    devices_per_minute: float = 0.0
    ramp: str = ""
    ramp_s: float = 0.0
    ramp_doublings: int = 0

    @property
    def percent(self) -> str:
        """``12.5 %`` for people; ``20 devices`` while the share is not known."""
        if self.percent_bp == 0:
            return f"{self.devices} devices"
        return f"{self.percent_bp / 100:g} %"

    @property
    def words(self) -> str:
        """``50 %``, ``shadow on 10 %``, ``50 % of requests on 10 %`` or ``standby on 100 %``."""
        if self.kind is StageKind.CANARY:
            return self.percent
        if self.kind is StageKind.AB:
            return f"{self.traffic_bp / 100:g} % of requests on {self.percent}"
        return f"{self.kind} on {self.percent}"

    @property
    def is_beside(self) -> bool:
        """Whether the bundle is held beside the one that answers."""
        return self.kind is not StageKind.CANARY

    def to_json(self) -> dict[str, Any]:
        """Share and bake time always, the rest where it is not the default."""
        said = {"percent_bp": self.percent_bp, "bake_s": self.bake_s}
        others = ((f.name, getattr(self, f.name), f.default) for f in fields(self)[2:])
        return said | {name: value for name, value, usual in others if value != usual}


DEFAULT_METRICS: Final = (
    ("error_rate", 1.25),
    ("output_violation_rate", 1.25),
    ("over_latency_rate", 1.25),
)


@dataclass(frozen=True, slots=True)
class Guards:
    """What a stage is held to: absolute limits, and a comparison with the devices without the bundle.

    A rate is a share (0.05 = 5 %); None switches that one limit off. ``min_installs`` devices must
    have finished before their failure rate is judged (fewer when the cohort is smaller),
    ``min_requests`` requests on ``min_devices`` devices before a rate of requests is. A device that
    serves the bundle and sends nothing for ``silence_s`` has failed.

    ``metrics``: pairs of name and tolerance, sorted: 1.25 means that a stage goes on once a change
    for the worse by 25 % would have been seen. ``alpha`` is the chance that a rollout that changes
    nothing is rolled back by the comparison, over all its stages and looks.
    """

    max_install_failure_rate: float | None = 0.1
    min_installs: int = 10
    max_error_rate: float | None = 0.05
    max_over_latency_rate: float | None = 0.2
    max_output_violation_rate: float | None = 0.05
    min_requests: int = 50
    min_devices: int = 1
    silence_s: float = 300.0
    statistics: Statistics = Statistics.AUTO
    metrics: tuple[tuple[str, float], ...] = DEFAULT_METRICS
    alpha: float = 0.01

    def rates(self) -> tuple[float | None, ...]:
        """The limits on what a bundle does once it serves."""
        return (self.max_error_rate, self.max_over_latency_rate, self.max_output_violation_rate)

    @property
    def compares(self) -> bool:
        """Whether the arms are compared at all."""
        return self.statistics is not Statistics.OFF and bool(self.metrics)

    def to_json(self) -> dict[str, Any]:
        """Every key."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"statistics": str(self.statistics), "metrics": dict(self.metrics)}


@dataclass(frozen=True, slots=True)
class Check:
    """An external check: a URL that is asked every ``every_s`` and answers pass, hold or fail.

    No answer within ``timeout_s`` is a hold. ``plain_http``: the operator lets it be asked beyond this machine
    without TLS, where anybody on the way can answer in its place.
    """

    url: str
    timeout_s: float = 10.0
    every_s: float = 60.0
    plain_http: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "timeout_s": self.timeout_s,
            "every_s": self.every_s,
            "plain_http": self.plain_http,
        }


DEFAULT_STAGES: Final[Mapping[Strategy, tuple[Stage, ...]]] = {
    Strategy.CANARY: (Stage(1000, 600.0), Stage(5000, 600.0), Stage(ALL_BP, 600.0)),
    Strategy.SHADOW_THEN_CANARY: (
        Stage(1000, 600.0, StageKind.SHADOW, traffic_bp=1000),
        Stage(1000, 600.0),
        Stage(5000, 600.0),
        Stage(ALL_BP, 600.0),
    ),
    Strategy.AB: (
        Stage(1000, 600.0, StageKind.AB, traffic_bp=5000),
        Stage(ALL_BP, 600.0),
    ),
    Strategy.BLUE_GREEN: (
        Stage(ALL_BP, 600.0, StageKind.STANDBY),
        Stage(1000, 600.0),
        Stage(ALL_BP, 600.0),
    ),
    Strategy.ALL_AT_ONCE: (Stage(ALL_BP, 600.0),),
}


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """One rollout, as asked for.

    Attributes:
        model: may be empty in what an operator sends: it is then the bundle's.
        bundle: ``bundles/CLASS/MODEL-VERSION``.
        stages: in order; the last one reaches everyone but the hold-back.
        selector: labels a device must have, sorted by key; empty means every device. ``class``,
            ``hardware`` and ``id`` are labels too.
        guards: what each stage is held to.
        strategy: how the bundle gets to the devices.
        install_deadline_s: a device that is not done so long after it began has failed.
        exclude: labels of devices to leave out; one of them is enough.
        open_hours: maintenance windows in each device's local time, ``mon-fri 01:00-05:00``.
        hold_back: devices that stay without the bundle, to compare with, until the last stage has
            baked: ``auto``, ``5%``, or a number of devices.
        hold_back_bp: the share that this came to when the rollout was created: those with the highest
            slots, from ``ALL_BP - hold_back_bp`` on.
        retries: how often a device that refused or reverted the bundle may try again.
        routing_key: request parameter that an A/B stage divides by; "" is the request id.
        older: devices that serve a newer release may go back to this one.
        checks: external checks.
    """

    model: str
    bundle: str
    stages: tuple[Stage, ...] = DEFAULT_STAGES[Strategy.CANARY]
    selector: tuple[tuple[str, str], ...] = ()
    guards: Guards = field(default_factory=Guards)
    strategy: Strategy = Strategy.CANARY
    install_deadline_s: float = 3600.0
    exclude: tuple[tuple[str, str], ...] = ()
    open_hours: tuple[str, ...] = ()
    hold_back: str = AUTO
    hold_back_bp: int = 0
    retries: int = 0
    routing_key: str = ""
    older: bool = False
    checks: tuple[Check, ...] = ()

    @property
    def reach_bp(self) -> int:
        """The share of the fleet that gets the bundle before it is promoted."""
        return ALL_BP - self.hold_back_bp

    def to_json(self) -> dict[str, Any]:
        """What is stored and sent; ``parse_spec`` reads it back."""
        return {
            "model": self.model,
            "bundle": self.bundle,
            "strategy": str(self.strategy),
            "stages": [stage.to_json() for stage in self.stages],
            "selector": dict(self.selector),
            "exclude": [f"{label}={value}" for label, value in self.exclude],
            "guards": self.guards.to_json(),
            "checks": [check.to_json() for check in self.checks],
            "install_deadline_s": self.install_deadline_s,
            "open_hours": list(self.open_hours),
            "hold_back": self.hold_back,
            "hold_back_bp": self.hold_back_bp,
            "retries": self.retries,
            "routing_key": self.routing_key,
            "older": self.older,
        }


def bundle_class(bundle: str) -> str:
    """The device class in a bundle path ``bundles/CLASS/MODEL-VERSION``.

    Raises:
        RequestError: it is no such path.
    """
    found = _BUNDLE.fullmatch(bundle)
    if found is None:
        raise RequestError(
            f"bundle {bundle!r} is no bundle path: write it as bundles/CLASS/MODEL-VERSION, "
            "as `fleet bundle list` shows it"
        )
    return found.group(1)


def selectors_overlap(one: tuple[tuple[str, str], ...], other: tuple[tuple[str, str], ...]) -> bool:
    """Whether a device can match both: only when no key is asked to have two values."""
    wanted = dict(one)
    return all(wanted.get(key, value) == value for key, value in other)
