"""Reading the guards of a spec: limits, comparison, external checks.

Rules kept here: a guard that could never say no is refused, so a rollout is never without a gate; a
metric that nobody knows is refused by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from fleet.errors import RequestError
from fleet.rollout.gate.metrics import metric_of
from fleet.rollout.reading import Reader
from fleet.rollout.spec import DEFAULT_METRICS, Check, Guards, Statistics

__all__ = ["parse_checks", "parse_guards"]

LONGEST_S: Final = 30 * 86_400.0
MAX_METRICS: Final = 32
MAX_CHECKS: Final = 8
MAX_URL_CHARS: Final = 2000
_BASE: Final = Guards()


def parse_guards(raw: Mapping[str, Any]) -> Guards:
    """The table ``guards``; what it leaves out has its default.

    Raises:
        RequestError: unknown, of the wrong kind, out of range, or nothing is left that could say no.
    """
    reader = Reader(raw, "guards", tuple(Guards.__dataclass_fields__))
    metrics = _metrics(reader.table("metrics")) if reader.has("metrics") else DEFAULT_METRICS
    guards = Guards(
        max_install_failure_rate=reader.rate(
            "max_install_failure_rate", _BASE.max_install_failure_rate
        ),
        min_installs=reader.integer("min_installs", _BASE.min_installs, 1, 1_000_000),
        max_error_rate=reader.rate("max_error_rate", _BASE.max_error_rate),
        max_over_latency_rate=reader.rate("max_over_latency_rate", _BASE.max_over_latency_rate),
        max_output_violation_rate=reader.rate(
            "max_output_violation_rate", _BASE.max_output_violation_rate
        ),
        min_requests=reader.integer("min_requests", _BASE.min_requests, 1, 1_000_000_000),
        min_devices=reader.integer("min_devices", _BASE.min_devices, 1, 1_000_000),
        silence_s=reader.number("silence_s", _BASE.silence_s, 1.0, LONGEST_S),
        statistics=reader.word("statistics", Statistics, _BASE.statistics),
        metrics=metrics,
        alpha=reader.number("alpha", _BASE.alpha, 0.0001, 0.2),
    )
    _require_one(guards)
    return guards


def _require_one(guards: Guards) -> None:
    limits = (guards.max_install_failure_rate, *guards.rates())
    if all(limit is None for limit in limits) and guards.statistics is not Statistics.ON:
        raise RequestError(
            "every guard is switched off, so nothing could stop this rollout: set at least one of "
            "max_install_failure_rate, max_error_rate, max_over_latency_rate or "
            'max_output_violation_rate, or statistics = "on"'
        )
    if guards.statistics is Statistics.ON and not guards.metrics:
        raise RequestError(
            'statistics = "on" needs something to compare: name at least one of guards.metrics, '
            "like error_rate = 1.25"
        )


def _metrics(raw: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    if len(raw) > MAX_METRICS:
        raise RequestError(f"guards.metrics has at most {MAX_METRICS} metrics, not {len(raw)}")
    metrics = []
    for name in sorted(raw):
        try:
            metric_of(name)
        except KeyError as error:
            raise RequestError(f"guards.metrics: {error.args[0]}") from error
        tolerance = raw[name]
        is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
        if not is_number or not 1.01 <= tolerance <= 100:  # also refuses NaN
            raise RequestError(
                f"guards.metrics: {name} = {tolerance!r:.60} must be a factor from 1.01 to 100: "
                "1.25 tolerates a quarter more"
            )
        metrics.append((name, float(tolerance)))
    return tuple(metrics)


def parse_checks(raw: Sequence[Any]) -> tuple[Check, ...]:
    """The list ``checks``.

    Raises:
        RequestError: too many, or one is no check.
    """
    if len(raw) > MAX_CHECKS:
        raise RequestError(f"a rollout has at most {MAX_CHECKS} external checks, not {len(raw)}")
    checks = tuple(_check(item, number) for number, item in enumerate(raw, 1))
    if len({check.url for check in checks}) != len(checks):
        raise RequestError("two external checks have the same url: keep one of them")
    return checks


def _check(raw: object, number: int) -> Check:
    reader = Reader(raw, f"check {number}", tuple(Check.__dataclass_fields__))
    url = reader.text("url")
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and parts.hostname and len(url) <= MAX_URL_CHARS
    except ValueError:  # brackets that do not match, for example
        fits = False
    if not fits or not url.isprintable() or " " in url:
        raise RequestError(
            f"check {number}: url = {url!r:.80} is no address: write one like "
            "https://ci.example.com/gate"
        )
    return Check(
        url=url,
        timeout_s=reader.number("timeout_s", 10.0, 0.1, 300.0),
        every_s=reader.number("every_s", 60.0, 1.0, 86_400.0),
        plain_http=reader.flag("plain_http"),
    )
