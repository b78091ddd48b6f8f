"""What the fleet manager directs: one bundle, one rollout, one share of the fleet.

Rules kept here:

* A directive says what should be, not what to do next: the same one read twice changes nothing.
* It is parsed once, strictly: a key or a word that this agent does not know makes the directive
  unusable, because half a directive obeyed is a directive disobeyed.
* Numbers are whole: signed metadata is canonical JSON, which has no fractions.
* What a plain canary does not use is left out of the JSON, so that it stays small in the pack and an
  agent that does not know a key is not asked to.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agent.trust.cohort import SLOTS
from agent.trust.errors import MalformedError

__all__ = ["MODES", "OPEN_HOURS", "OPTIONAL", "ROLLOUT_PREFIX", "Directive"]

ROLLOUT_PREFIX: Final = "rollouts/"
"""Directives are targets of the rollout role under this path."""

MODES: Final = ("canary", "shadow", "ab", "blue-green")
KINDS: Final = ("deploy", "rollback")

_ID: Final = re.compile(r"[a-z0-9-]{1,64}")
_MODEL: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_BUNDLE: Final = re.compile(r"bundles/[a-z0-9-]{1,40}/[A-Za-z0-9._-]{1,130}")
_PARAMETER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_STRATUM: Final = re.compile(r"[a-z0-9-]{1,40}/[a-z0-9-]{1,40}")
_DAY: Final = "(?:mon|tue|wed|thu|fri|sat|sun)"
_TIME: Final = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
OPEN_HOURS: Final = re.compile(rf"(?:({_DAY})(?:-({_DAY}))? )?({_TIME})-({_TIME})")
"""``01:00-05:00``, ``sat 00:00-23:59`` or ``mon-fri 22:00-04:00``; a span may pass midnight."""
_LARGEST: Final = 2**53
_DOUBLINGS_MAX: Final = 20
_RETRIES_MAX: Final = 10
_LIST_MAX: Final = 64
_SELECTOR_ENTRIES_MAX: Final = 32
_SELECTOR_TEXT_MAX: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """One signed line of the rollout role.

    Attributes:
        id: id of the rollout, ``r7``.
        number: counts up over the fleet; of two directives for one model the higher number wins.
        model: name of the model.
        bundle: path of the bundle, ``bundles/CLASS/MODEL-VERSION``.
        sha256: digest of the bundle's manifest.
        length: length of the manifest in bytes.
        mode: what the bundle does on devices that hold it beside the one that answers: ``shadow`` gets
            copies of requests, ``ab`` answers a share of them, ``blue-green`` waits for the flip;
            ``canary`` is never held beside.
        percent_bp: share of the fleet that answers with the bundle, in basis points, 0 to 10000.
        selector: pairs of label and value that a device must all have; see
            :func:`agent.trust.selects`.
        stage: index of the stage, for people and logs.
        halt: nobody starts to install it any more; who has it keeps it.
        kind: ``deploy``, or ``rollback``: whoever has this bundle leaves it.
        not_before_s: installing begins at this time, in seconds since the epoch; 0 is at once.
        created_s: when the rollout was created, in seconds since the epoch.
        beside_bp: share of the fleet that holds the bundle beside the one that answers; those of
            ``percent_bp`` answer with it all the same.
        traffic_bp: share of requests that a bundle held beside gets (copies, or to answer).
        routing_key: name of the request parameter that an ``ab`` divides by; "" is the request id.
        from_bp, stage_started_s, ramp_s, ramp_doublings: within a stage the share grows from
            ``from_bp`` to ``percent_bp`` over ``ramp_s`` seconds, evenly, or doubling so many times;
            see :func:`agent.trust.turns.share_now_bp`.
        open_hours: maintenance windows in the device's local time, ``mon-fri 01:00-05:00``; empty is
            always. Nothing is begun or swapped outside of them.
        exclude: pairs of label and value; a device that has one of them is left out.
        stopped: strata (``CLASS/PROVIDER``) that leave the bundle again while the others go on.
        retries: how often a device that refused or reverted the bundle may try it again.
        older: the bundle may replace an active one of a higher release number.
    """

    id: str
    number: int
    model: str
    bundle: str
    sha256: str
    length: int
    mode: str = "canary"
    percent_bp: int = 0
    selector: tuple[tuple[str, str], ...] = ()
    stage: int = 0
    halt: bool = False
    kind: str = "deploy"
    not_before_s: int = 0
    created_s: int = 0
    beside_bp: int = 0
    traffic_bp: int = 0
    routing_key: str = ""
    from_bp: int = 0
    stage_started_s: int = 0
    ramp_s: int = 0
    ramp_doublings: int = 0
    open_hours: tuple[str, ...] = ()
    exclude: tuple[tuple[str, str], ...] = ()
    stopped: tuple[str, ...] = ()
    retries: int = 0
    older: bool = False

    @property
    def target_path(self) -> str:
        """Where the directive stands in the rollout role."""
        return f"{ROLLOUT_PREFIX}{self.id}"

    @property
    def device_class(self) -> str:
        """The class of devices that the bundle is made for, from its path."""
        return self.bundle.split("/")[1]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; :meth:`from_json` gives the same directive back."""
        optional = {
            "beside_bp": self.beside_bp,
            "traffic_bp": self.traffic_bp,
            "routing_key": self.routing_key,
            "from_bp": self.from_bp,
            "stage_started_s": self.stage_started_s,
            "ramp_s": self.ramp_s,
            "ramp_doublings": self.ramp_doublings,
            "open_hours": list(self.open_hours),
            "exclude": [list(pair) for pair in self.exclude],
            "stopped": list(self.stopped),
            "retries": self.retries,
            "older": self.older,
        }
        return {key: value for key, value in optional.items() if value} | {
            "id": self.id,
            "number": self.number,
            "model": self.model,
            "bundle": self.bundle,
            "sha256": self.sha256,
            "length": self.length,
            "mode": self.mode,
            "percent_bp": self.percent_bp,
            "selector": dict(self.selector),
            "stage": self.stage,
            "halt": self.halt,
            "kind": self.kind,
            "not_before_s": self.not_before_s,
            "created_s": self.created_s,
        }

    @classmethod
    def from_json(cls, value: object) -> "Directive":
        """Parse a directive, refusing anything that is not exactly one.

        Raises:
            MalformedError: a key is missing, unknown or of the wrong kind; the message names it.
        """
        if not isinstance(value, Mapping):
            raise MalformedError(f"a directive must be a JSON object, not {type(value).__name__}")
        fields = _Fields(value)
        return cls(
            id=fields.text("id", _ID),
            number=fields.whole("number"),
            model=fields.text("model", _MODEL),
            bundle=fields.text("bundle", _BUNDLE),
            sha256=fields.text("sha256", _SHA256),
            length=fields.whole("length"),
            mode=fields.word("mode", MODES),
            percent_bp=fields.whole("percent_bp", SLOTS),
            selector=fields.selector("selector"),
            stage=fields.whole("stage"),
            halt=fields.flag("halt"),
            kind=fields.word("kind", KINDS),
            not_before_s=fields.whole("not_before_s"),
            created_s=fields.whole("created_s"),
            beside_bp=fields.whole("beside_bp", SLOTS, 0),
            traffic_bp=fields.whole("traffic_bp", SLOTS, 0),
            routing_key=fields.text("routing_key", _PARAMETER, ""),
            from_bp=fields.whole("from_bp", SLOTS, 0),
            stage_started_s=fields.whole("stage_started_s", _LARGEST, 0),
            ramp_s=fields.whole("ramp_s", _LARGEST, 0),
            ramp_doublings=fields.whole("ramp_doublings", _DOUBLINGS_MAX, 0),
            open_hours=fields.texts("open_hours", OPEN_HOURS),
            exclude=fields.pairs("exclude"),
            stopped=fields.texts("stopped", _STRATUM),
            retries=fields.whole("retries", _RETRIES_MAX, 0),
            older=fields.flag("older", default=False),
        )


OPTIONAL: Final = frozenset(
    {
        "beside_bp",
        "traffic_bp",
        "routing_key",
        "from_bp",
        "stage_started_s",
        "ramp_s",
        "ramp_doublings",
        "open_hours",
        "exclude",
        "stopped",
        "retries",
        "older",
    }
)
"""Keys that a directive may leave out."""
_KEYS: Final = frozenset(Directive.__dataclass_fields__)


class _Fields:
    """The keys of one directive, each checked as it is taken."""

    def __init__(self, value: Mapping[Any, Any]) -> None:
        self._name = f"directive {str(value.get('id', '?'))[:64]!r}"
        if not _KEYS - OPTIONAL <= set(value) <= _KEYS:
            missing = sorted(_KEYS - OPTIONAL - set(value))
            unknown = sorted(str(key)[:64] for key in set(value) - _KEYS)
            raise MalformedError(
                f"{self._name} does not have the keys this agent knows (missing: {missing}, "
                f"unknown: {unknown}); "
                f"agent and fleet manager differ in version"
            )
        self._value = value

    def _refuse(self, key: str, expected: str) -> MalformedError:
        return MalformedError(
            f"{self._name}: {key} = {str(self._value[key])[:80]!r} is not {expected}"
        )

    def text(self, key: str, pattern: re.Pattern[str], default: str | None = None) -> str:
        value = self._value.get(key, default)
        if default is not None and value == default:
            return default
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._refuse(key, f"text of the form {pattern.pattern}")
        return value

    def texts(self, key: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
        value = self._value.get(key, [])
        if not isinstance(value, list) or len(value) > _LIST_MAX:
            raise self._refuse(key, f"a list of at most {_LIST_MAX}")
        for entry in value:
            if not isinstance(entry, str) or not pattern.fullmatch(entry):
                raise self._refuse(key, f"a list of text of the form {pattern.pattern}")
        return tuple(value)

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        value = self._value.get(key, [])
        if not isinstance(value, list) or len(value) > _LIST_MAX:
            raise self._refuse(key, f"a list of at most {_LIST_MAX} pairs")
        for entry in value:
            if (
                not isinstance(entry, list)
                or len(entry) != 2
                or not all(isinstance(text, str) for text in entry)
                or max(map(len, entry)) > _SELECTOR_TEXT_MAX
            ):
                raise self._refuse(key, "a list of pairs of label and value")
        return tuple((label, wanted) for label, wanted in value)

    def word(self, key: str, words: tuple[str, ...]) -> str:
        value = self._value[key]
        if value not in words:
            raise self._refuse(key, f"one of {', '.join(words)}")
        return str(value)

    def whole(self, key: str, largest: int = _LARGEST, default: int | None = None) -> int:
        value = self._value.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
            raise self._refuse(key, f"a whole number from 0 to {largest}")
        return value

    def flag(self, key: str, *, default: bool | None = None) -> bool:
        value = self._value.get(key, default)
        if not isinstance(value, bool):
            raise self._refuse(key, "true or false")
        return value

    def selector(self, key: str) -> tuple[tuple[str, str], ...]:
        value = self._value[key]
        if not isinstance(value, Mapping) or len(value) > _SELECTOR_ENTRIES_MAX:
            raise self._refuse(key, f"an object of at most {_SELECTOR_ENTRIES_MAX} labels")
        for label, wanted in value.items():
            if not (isinstance(label, str) and isinstance(wanted, str)):
                raise self._refuse(key, "an object of text")
            if max(len(label), len(wanted)) > _SELECTOR_TEXT_MAX:
                raise self._refuse(key, f"made of text of at most {_SELECTOR_TEXT_MAX} characters")
        return tuple(sorted(value.items()))
