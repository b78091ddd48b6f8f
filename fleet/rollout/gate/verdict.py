"""The three answers a guard can give. Rules kept here: a closed set, ordered in one place."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

__all__ = ["SEVERITY", "Verdict"]


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105 -- a verdict, not a password
    HOLD = "hold"
    FAIL = "fail"


SEVERITY: Final[Mapping[Verdict, int]] = {Verdict.PASS: 0, Verdict.HOLD: 1, Verdict.FAIL: 2}
