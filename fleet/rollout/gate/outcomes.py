"""Outcomes that a device has once, against a failure budget: refused, crashing, gone back, silent.

Rules kept here: how devices are counted is in ``gate.bets``; silence is also held against the devices
without the bundle, because a network takes down both; what some strata alone explain stops these and
lets the others go on.

Where strata are told apart (``gate.strata``), the bet over all devices has alpha/2 and that of each of
S strata alpha/(2 S). Nothing is stopped or rolled back without an alarm of one of these bets, so the
chance that a bundle which harms nobody is either is at most alpha/2 + S alpha/(2 S) = alpha, over all
stages: they see longer and longer parts of the same sequences. Which devices an alarm concerns is
asked after it, and can only leave some of them alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fleet.rollout.gate.bets import (
    LEAST_FAILED,
    Bet,
    Seen,
    Unequal,
    bets_of,
    budgets_of,
    causes_of,
    seen_of,
    unequal_silence,
)
from fleet.rollout.gate.binary import alarm_level
from fleet.rollout.gate.blocks import MIN_CANARIES
from fleet.rollout.gate.door import Finding
from fleet.rollout.gate.strata import Apart, told_apart
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.outcomes import WORDS
from fleet.rollout.snapshot import Snapshot

__all__ = ["LEAST_FAILED", "OutcomesGuard"]


@dataclass(frozen=True, slots=True)
class OutcomesGuard:
    """Each kind of failure against its own budget, alpha shared by the four kinds.

    FAIL when the wealth of a bet against the budget has reached 4/alpha (``gate.binary``), or when so
    many more of the cohort than of the others are silent that chance does not explain it. HOLD, with
    ``stop_strata`` in the evidence, when some strata alone explain it and others have the bundle too.
    """

    name: str = "outcomes"

    def judge(self, snapshot: Snapshot) -> Finding:
        case = _Case.of(snapshot)
        bets, unequal = case.bets(case.seen), unequal_silence(case.seen, snapshot)
        alarms = list(case.alarms(bets, unequal))
        alarming = case.alarming()
        told = case.told(bets, unequal)
        if not alarms and not alarming:
            counts = [f"{bet.failed} {WORDS[kind]}" for kind, bet in bets.items()]
            reason = f"of {len(case.seen)} canary devices {', '.join(counts)}"
            return Finding(self.name, Verdict.PASS, reason, told)
        blamed = case.explaining(alarming)
        if blamed:
            told["stop_strata"] = blamed
            return Finding(self.name, Verdict.HOLD, case.blame(blamed), told)
        if not alarms:
            others = "; the others fail too" if case.without(alarming) else ""
            return Finding(self.name, Verdict.FAIL, case.blame(alarming) + others, told)
        causes = sorted(snapshot.tally().failures.items())
        why = ", ".join(f"{count} {cause}" for cause, count in causes)
        return Finding(self.name, Verdict.FAIL, f"{'; '.join(alarms)}: {why}", told)


@dataclass(frozen=True, slots=True)
class _Case:
    """The cohort, its strata with their bets, and the wealth at which the bet over all alarms."""

    snapshot: Snapshot
    seen: tuple[Seen, ...]
    budgets: Mapping[str, float]
    apart: Apart
    level: float
    sizes: Mapping[str, int]
    own: Mapping[str, Mapping[str, Bet]]

    @classmethod
    def of(cls, snapshot: Snapshot) -> "_Case":
        apart, seen, budgets = told_apart(snapshot), seen_of(snapshot), budgets_of(snapshot)
        parts: dict[str, list[Seen]] = {name: [] for name in apart.names}
        for device in seen:
            if device.stratum in parts:
                parts[device.stratum].append(device)
        return cls(
            snapshot=snapshot,
            seen=seen,
            budgets=budgets,
            apart=apart,
            level=alarm_level(apart.pooled_alpha(snapshot.rollout.spec.guards.alpha)),
            sizes={name: len(mine) for name, mine in parts.items()},
            own={name: bets_of(mine, budgets) for name, mine in parts.items()},
        )

    def bets(self, seen: Sequence[Seen]) -> dict[str, Bet]:
        return bets_of(seen, self.budgets)

    def without(self, names: Sequence[str]) -> tuple[Seen, ...]:
        return tuple(device for device in self.seen if device.stratum not in names)

    @property
    def own_level(self) -> float:
        """The wealth at which the bet over one stratum alarms."""
        return alarm_level(self.apart.own_alpha(self.snapshot.rollout.spec.guards.alpha))

    def alarms(self, bets: Mapping[str, Bet], unequal: Unequal | None) -> Iterator[str]:
        """Why the bets over all devices alarm, in words."""
        for kind, bet in bets.items():
            if bet.alarms(self.level):
                yield (
                    f"{bet.failed} of {len(self.seen)} canary devices {WORDS[kind]}, more than the "
                    f"{bet.budget * 100:.3g} % that may (the odds against it are {bet.wealth:.3g}, "
                    f"and {self.level:g} are enough)"
                )
        if unequal is not None and unequal.alarms:
            control = self.snapshot.control
            yield (
                f"{unequal.silent} of {unequal.at_risk} canary devices are silent and "
                f"{control.silent} of {control.active} devices without the bundle "
                f"(p = {unequal.p_value:.2g})"
            )

    def alarming(self) -> list[str]:
        """The strata with enough canary devices whose own bet alarms."""
        return [
            name
            for name in self.apart.names
            if self.sizes[name] >= MIN_CANARIES
            and any(bet.alarms(self.own_level) for bet in self.own[name].values())
        ]

    def explaining(self, alarming: Sequence[str]) -> list[str]:
        """The strata without which nothing alarms, the others judged alone; none when there are none.

        Those that alarm by themselves, and as many more of those that would alarm at the level of all
        devices as it takes, the worst first: a bet over all devices often wins a tick earlier.
        """
        blamed = list(alarming)
        more = [name for name in self._suspects() if name not in blamed]
        while not blamed or not self._is_calm(blamed):
            if not more:
                return []
            blamed.append(more.pop(0))
        return sorted(blamed) if self.without(blamed) else []

    def _suspects(self) -> list[str]:
        """The strata that would alarm at the level of all devices, the worst first."""
        wealth = {
            name: max((bet.wealth for bet in bets.values() if bet.alarms(self.level)), default=0.0)
            for name, bets in self.own.items()
        }
        return sorted(filter(wealth.__getitem__, wealth), key=lambda name: (-wealth[name], name))

    def _is_calm(self, blamed: Sequence[str]) -> bool:
        rest = self.without(blamed)
        return not any(self.alarms(self.bets(rest), unequal_silence(rest, self.snapshot)))

    def blame(self, names: Sequence[str]) -> str:
        """What the devices of these strata did, and how many of the others."""
        rest = self.without(names)
        parts: list[str] = []
        for name in names:
            for kind, bet in self.own[name].items():
                if not bet.alarms(self.level):
                    continue
                also = sum(device.kind == kind for device in rest)
                others = f", {also or 'none'} of {len(rest)} others" if rest else ""
                parts.append(
                    f"{bet.failed} of {self.sizes[name]} canary devices of {name} {WORDS[kind]} "
                    f"({bet.budget * 100:.3g} % may){others}"
                )
        causes = causes_of([device for device in self.seen if device.stratum in names])
        return f"{'; '.join(parts)}: {causes}"

    def told(self, bets: Mapping[str, Bet], unequal: Unequal | None) -> dict[str, Any]:
        """The numbers; those of strata only where they are told apart."""
        told: dict[str, Any] = {"devices": len(self.seen), "alarm_at": self.level}
        told["kinds"] = {kind: asdict(bet) for kind, bet in bets.items()}
        if unequal is not None:
            told["silence"] = {"p_value": unequal.p_value, "alarm_at": unequal.least}
        if not self.apart.names:
            return told
        told["strata"] = sorted(self.snapshot.strata)
        told["stratum_alarm_at"] = self.own_level
        told["by_stratum"] = {
            name: {
                "devices": self.sizes[name],
                "kinds": {kind: asdict(bet) for kind, bet in bets.items()},
            }
            for name, bets in self.own.items()
        }
        return told
