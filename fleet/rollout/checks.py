"""External checks: what a URL answered about a stage, as a guard like any other. Pure.

Rules kept here: only a clear answer counts: a verdict in JSON, or success without a body, which is a
pass; anything else (no answer, an error, a redirect, a page, a word nobody knows, an answer that has
grown old) is a hold with its reason; an answer counts for the run of the stage it was asked for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fleet.rollout.check_addresses import shown_url
from fleet.rollout.gate.door import Finding, Verdict
from fleet.rollout.record import Rollout
from fleet.rollout.snapshot import CheckAnswer, Snapshot
from fleet.rollout.spec import Check

__all__ = ["CheckGuard", "due_checks", "parameters", "verdict_of"]

MAX_REASON_CHARS: Final = 300
STALE_ASKS: Final = 3.0  # asks in a row that may go missing before an answer is too old


@dataclass(frozen=True, slots=True)
class CheckGuard:
    """One external check."""

    check: Check
    name: str = "check"

    def judge(self, snapshot: Snapshot) -> Finding:
        """What the URL answered last, or HOLD."""
        check = self.check
        where = f"check {shown_url(check.url)}"
        answer = _answer(snapshot.checks, check, snapshot.rollout)
        if answer is None:
            evidence = {"url": shown_url(check.url), "every_s": check.every_s}
            return Finding(
                self.name, Verdict.HOLD, f"{where} has not answered about this stage yet", evidence
            )
        evidence = {
            "url": shown_url(check.url),
            "every_s": check.every_s,
            "asked_s": answer.asked_s,
            "answered_s": answer.answered_s,
            "said": answer.verdict,
            "next_s": answer.asked_s + check.every_s,
        }
        age_s = snapshot.now_s - answer.answered_s
        if age_s > STALE_ASKS * check.every_s + check.timeout_s:
            reason = (
                f"{where} answered {answer.verdict} {age_s:.0f} s ago, too long ago to count: it is "
                f"asked every {check.every_s:g} s"
            )
            return Finding(self.name, Verdict.HOLD, reason, evidence)
        said = f": {answer.reason}" if answer.reason else ""
        return Finding(
            self.name, Verdict(answer.verdict), f"{where} says {answer.verdict}{said}", evidence
        )


def _answer(answers: Sequence[CheckAnswer], check: Check, rollout: Rollout) -> CheckAnswer | None:
    for answer in answers:
        if answer.url == check.url and answer.stage_started_s == rollout.stage_started_s:
            return answer
    return None


def due_checks(rollout: Rollout, answers: Sequence[CheckAnswer], now_s: float) -> tuple[Check, ...]:
    """The checks to ask now: at once when a stage begins, and every ``every_s`` after that."""
    due = []
    for check in rollout.spec.checks:
        answer = _answer(answers, check, rollout)
        if answer is None or now_s >= answer.asked_s + check.every_s:
            due.append(check)
    return tuple(due)


def parameters(rollout: Rollout) -> dict[str, str]:
    """What is added to the query of the URL, so that it knows what it is asked about."""
    return {
        "rollout": rollout.id,
        "model": rollout.model,
        "bundle": rollout.bundle,
        "stage": str(rollout.stage + 1),
        "stages": str(len(rollout.spec.stages)),
        "stage_started": f"{rollout.stage_started_s:.3f}",
    }


def verdict_of(status: int, body: bytes) -> tuple[Verdict, str]:
    """What an answer means, and why."""
    if not 200 <= status < 300:
        return Verdict.HOLD, f"it answered with status {status}"
    if not body.strip():
        return Verdict.PASS, ""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):  # also what is not UTF-8
        return Verdict.HOLD, f"it answered with status {status} and something that is no JSON"
    word = said.get("verdict") if isinstance(said, dict) else None
    if not isinstance(word, str) or word not in set(Verdict):
        return Verdict.HOLD, (
            'its answer has no verdict: {"verdict": "pass", "hold" or "fail", "reason": ...}'
        )
    reason = said.get("reason", "")
    text = " ".join(reason.split()) if isinstance(reason, str) else ""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return Verdict(word), printable[:MAX_REASON_CHARS]
