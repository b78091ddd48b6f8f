"""What a trial can say, as a closed set, and the one line of JSON that carries it out of the child.

The line comes from a process that has run a hostile model: it is parsed as strictly as anything
from the network.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

__all__ = ["EXIT_OK", "EXIT_REFUSED", "TrialReason", "TrialReport", "clean_text", "parse_line"]

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 3
MAX_REASON_CHARS: Final = 400
MAX_MEASURES: Final = 32


class TrialReason(StrEnum):
    """Why a bundle was refused."""

    LOAD_FAILED = "trial_load_failed"
    FORBIDDEN = "trial_forbidden"
    GOLDEN_FAILED = "trial_golden_failed"
    NON_FINITE = "trial_non_finite"
    MEMORY = "trial_memory"
    LATENCY = "trial_latency"
    TIMEOUT = "trial_timeout"
    CRASHED = "trial_crashed"


@dataclass(frozen=True, slots=True)
class TrialReport:
    """``ok`` or refused with a reason. ``measures``: load_ms, latency_ms, best_latency_ms,
    peak_rss_bytes, model_rss_bytes, golden_cases, and what the trial was kept from (0: the kernel cannot; see
    ``agent.runtime.confine.Confined``): network_isolated, files_confined (the ABI of Landlock), calls_confined,
    privileges_dropped."""

    ok: bool
    reason_code: str = ""
    reason: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)

    def to_line(self) -> str:
        """One line of JSON, without the newline."""
        body = {
            "ok": self.ok,
            "reason_code": self.reason_code,
            "reason": clean_text(self.reason),
            "measures": dict(self.measures),
        }
        return json.dumps(body, ensure_ascii=True, allow_nan=False)


def clean_text(text: str, limit: int = MAX_REASON_CHARS) -> str:
    """``text`` as one printable line of at most ``limit`` characters."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    line = " ".join(words)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def parse_line(line: bytes) -> TrialReport | None:
    """The report in ``line``, or None when the line is not one."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not isinstance(body.get("ok"), bool):
        return None
    code, reason, measures = body.get("reason_code"), body.get("reason"), body.get("measures")
    if not isinstance(code, str) or not isinstance(reason, str) or not isinstance(measures, dict):
        return None
    known_codes = {"", *TrialReason}
    if code not in known_codes or body["ok"] is not (code == "") or len(measures) > MAX_MEASURES:
        return None
    values: dict[str, float] = {}
    for name, value in measures.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        number = float(value) if abs(value) < 2**63 else math.inf
        if not math.isfinite(number) or len(name) > 64:
            return None
        values[name] = number
    return TrialReport(body["ok"], code, clean_text(reason), values)
