"""Whose turn it is within a stage: the growing share, the open hours, who is left out, which stratum.

Rules kept here:

* Devices and the fleet manager ask the same functions, so they cannot disagree about who is in.
* The share of a ramp never shrinks while its directive stands, and ends exactly at the stage's share.
* Open hours are the device's own local time; a span belongs to the day on which it begins.
* Values in, values out: neither a clock nor a time zone is read here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from agent.trust.decision import DeviceFacts, Tries
from agent.trust.directive import OPEN_HOURS, Directive

__all__ = [
    "RETRY_FIRST_S",
    "excluded",
    "is_open",
    "is_stopped",
    "labels_of",
    "may_try",
    "next_try_s",
    "selects",
    "share_now_bp",
    "stratum_of",
]

RETRY_FIRST_S: Final = 15 * 60.0
"""Pause before the first retry; it doubles with each further one."""
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTES_A_DAY: Final = 24 * 60
_EPOCH_WEEKDAY: Final = 3
"""1 January 1970 was a Thursday."""


def share_now_bp(directive: Directive, now_s: float) -> int:
    """The share of the fleet that answers with the bundle at ``now_s``, in basis points.

    Over ``ramp_s`` seconds from ``stage_started_s`` on it grows from ``from_bp`` to ``percent_bp`` by the
    part f of the way: evenly, f = t/T, or with d doublings, f = (2^(d t/T) - 1) / (2^d - 1), which adds
    twice as much in each T/d seconds as in those before. Rounded down, so the last place comes last.

    Args:
        directive: what the fleet manager signed.
        now_s: trusted time, seconds since the epoch.
    """
    start, end = min(directive.from_bp, directive.percent_bp), directive.percent_bp
    if directive.ramp_s == 0:
        return end
    gone = (now_s - directive.stage_started_s) / directive.ramp_s
    if gone >= 1.0:
        return end
    gone = max(gone, 0.0)
    doublings = directive.ramp_doublings
    part = (
        gone if doublings == 0 else math.expm1(gone * doublings * math.log(2)) / (2**doublings - 1)
    )
    return start + math.floor((end - start) * min(part, 1.0))


def is_open(open_hours: Sequence[str], now_s: float, utc_offset_minutes: int) -> bool:
    """Whether something may be begun or swapped now: a span is open from its first minute until its last.

    A span whose end is not after its start ends on the next day; ``sat 00:00-00:00`` is all of Saturday.
    Days may pass the end of the week: ``sat-mon``. No spans: always open.

    Args:
        open_hours: spans as :data:`agent.trust.directive.OPEN_HOURS` has them.
        now_s: trusted time, seconds since the epoch.
        utc_offset_minutes: what the device's local time is ahead of UTC now.

    Raises:
        ValueError: a span is not of that form.
    """
    if not open_hours:
        return True
    local_minutes = math.floor(now_s / 60) + utc_offset_minutes
    days, minute = divmod(local_minutes, _MINUTES_A_DAY)
    today = (days + _EPOCH_WEEKDAY) % len(_DAYS)
    return any(_span_is_open(span, today, minute) for span in open_hours)


def _span_is_open(span: str, today: int, minute: int) -> bool:
    found = OPEN_HOURS.fullmatch(span)
    if found is None:
        raise ValueError(f"open hours {span!r} are not of the form {OPEN_HOURS.pattern}")
    first, last, start_text, end_text = found.groups()
    start, end = _minute_of(start_text), _minute_of(end_text)
    if start < end:
        return _is_day(first, last, today) and start <= minute < end
    yesterday = (today - 1) % len(_DAYS)
    return (_is_day(first, last, today) and minute >= start) or (
        _is_day(first, last, yesterday) and minute < end
    )


def _is_day(first: str | None, last: str | None, day: int) -> bool:
    if first is None:
        return True
    begins, ends = _DAYS.index(first), _DAYS.index(last or first)
    return (day - begins) % len(_DAYS) <= (ends - begins) % len(_DAYS)


def _minute_of(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def labels_of(facts: DeviceFacts) -> Mapping[str, str]:
    """The labels that selectors and exclusions ask for: the device's own, and ``class``, ``hardware`` and ``id``."""
    return {
        **facts.labels,
        "class": facts.device_class,
        "hardware": facts.hardware,
        "id": facts.device_id,
    }


def selects(selector: Sequence[tuple[str, str]], facts: DeviceFacts) -> bool:
    """Whether a device has every label of a selector; an empty one selects every device."""
    own = labels_of(facts)
    return all(own.get(label) == wanted for label, wanted in selector)


def excluded(exclude: Sequence[tuple[str, str]], facts: DeviceFacts) -> tuple[str, str] | None:
    """The first pair of label and value that leaves a device out; None when none does."""
    own = labels_of(facts)
    return next(((label, value) for label, value in exclude if own.get(label) == value), None)


def stratum_of(facts: DeviceFacts) -> str:
    """The group a device is compared within, ``CLASS/PROVIDER``; a device that names no provider is ``cpu``."""
    return f"{facts.device_class}/{facts.execution_provider or 'cpu'}"


def is_stopped(directive: Directive, facts: DeviceFacts) -> bool:
    """Whether the device's stratum leaves the bundle again while the others go on."""
    return stratum_of(facts) in directive.stopped


def next_try_s(directive: Directive, tries: Tries | None) -> float | None:
    """From when on a device may try the bundle (again), seconds since the epoch; None: never by this rollout.

    After the n-th try that ended badly it waits 2^(n-1) times ``RETRY_FIRST_S``.
    """
    if tries is None:
        return 0.0
    if tries.count > directive.retries:
        return None
    return tries.last_s + RETRY_FIRST_S * 2.0 ** (tries.count - 1)


def may_try(directive: Directive, tries: Tries | None, now_s: float) -> bool:
    """Whether a device may try the bundle now. A clock that went back since the last try keeps nobody waiting."""
    at_s = next_try_s(directive, tries)
    if at_s is None:
        return False
    return now_s >= at_s or (tries is not None and now_s < tries.last_s)
