"""What a rollout waits for, in words that say what would make it go on. Pure.

Rules kept here: one clause for each thing that is in the way, each once, the ones that a person can
do something about first; a time where it is known when something is looked at again.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fleet.rollout.controller import Action
from fleet.rollout.gate import Verdict
from fleet.rollout.record import Rollout
from fleet.rollout.states import State

__all__ = ["Wait", "waits_of"]

_FIRST: Final = ("approval", "check", "silence", "release_limit")  # a person can help with these
_LAST: Final = "bake"


@dataclass(frozen=True, slots=True)
class Wait:
    """One thing that is waited for. ``until_s``: when it will be, or is looked at again."""

    guard: str
    words: str
    until_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"guard": self.guard, "words": self.words, "until_s": self.until_s}


def waits_of(rollout: Rollout, action: Action | None) -> tuple[Wait, ...]:
    """Everything that keeps the rollout from going on now; nothing once it is over."""
    if rollout.state is State.WAITING:
        needed = rollout.approver_words(0).removeprefix("approval").strip()
        who = f" ({needed})" if needed else ""
        return (Wait("approval", f"approve it{who}: `fleet rollout approve {rollout.id}`"),)
    if rollout.state is State.PAUSED:
        return (Wait("paused", f"resume it: `fleet rollout resume {rollout.id}`"),)
    if action is None or action.verdict is not Verdict.HOLD:
        return ()
    found = [
        _wait(finding, rollout)
        for finding in action.evidence["findings"]
        if finding["verdict"] == Verdict.HOLD
    ]
    each_once = {wait.words: wait for wait in found}
    return tuple(sorted(each_once.values(), key=_rank))


def _rank(wait: Wait) -> int:
    if wait.guard == _LAST:
        return len(_FIRST) + 1
    return _FIRST.index(wait.guard) if wait.guard in _FIRST else len(_FIRST)


def _wait(finding: Mapping[str, Any], rollout: Rollout) -> Wait:
    guard, evidence = finding["guard"], finding["evidence"]
    words = _WORDS.get(guard)
    told = "" if words is None else words(evidence, rollout)
    until_s = next((evidence[key] for key in _TIMES if evidence.get(key) is not None), None)
    return Wait(guard, told or finding["reason"], until_s)


_TIMES: Final = ("ends_s", "next_look_s", "next_s")


def _coverage(evidence: Mapping[str, Any], rollout: Rollout) -> str:
    reported, reachable = evidence["reported"], evidence["reachable"]
    least = rollout.spec.guards.min_devices
    needed = max(math.ceil(evidence["needed_share"] * reachable), least) - reported
    if reachable == 0 or needed <= 0:
        return ""
    return f"{_more(needed, 'canary device')} committed and reported ({reported} of {reachable} so far)"


def _installs(evidence: Mapping[str, Any], rollout: Rollout) -> str:
    needed = min(rollout.spec.guards.min_installs, evidence["reachable"]) - evidence["finished"]
    return f"{_more(needed, 'install')} finished" if needed > 0 else ""


def _requests(evidence: Mapping[str, Any], rollout: Rollout) -> str:
    limits = rollout.spec.guards
    requests = limits.min_requests - evidence["requests"]
    devices = limits.min_devices - evidence["devices"]
    parts = [_more(requests, "request")] if requests > 0 else []
    parts += [f"requests on {_more(devices, 'device')}"] if devices > 0 else []
    return f"{' and '.join(parts)} served with the bundle" if parts else ""


def _bake(_evidence: Mapping[str, Any], rollout: Rollout) -> str:
    return f"the bake of {rollout.stage_name()} over"


def _comparison(evidence: Mapping[str, Any], _rollout: Rollout) -> str:
    return "" if "look" in evidence else "the first look at both arms"


def _check(evidence: Mapping[str, Any], _rollout: Rollout) -> str:
    said = evidence.get("said", "nothing yet")
    return f"a pass from {evidence['url']} (it says {said})" if said != "pass" else ""


_WORDS: Final[Mapping[str, Callable[[Mapping[str, Any], Rollout], str]]] = {
    "coverage": _coverage,
    "install_failures": _installs,
    "error_rate": _requests,
    "over_latency_rate": _requests,
    "output_violation_rate": _requests,
    "bake": _bake,
    "comparison": _comparison,
    "check": _check,
}
"""Guards whose hold is a number that is missing; of the others the reason says it, "" as well."""


def _more(count: int, noun: str) -> str:
    return f"{count} more {noun}" + ("" if count == 1 else "s")
