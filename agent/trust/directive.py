"""What the fleet manager directs: one bundle, one rollout, one share of the fleet.

Rules kept here:

* A directive says what should be, not what to do next: the same one read twice changes nothing.
* It is parsed once, strictly: a key or a word that this agent does not know makes the directive
  unusable, because half a directive obeyed is a directive disobeyed.
* Numbers are whole: signed metadata is canonical JSON, which has no fractions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agent.trust.cohort import SLOTS
from agent.trust.errors import MalformedError

__all__ = ["ROLLOUT_PREFIX", "Directive"]

ROLLOUT_PREFIX: Final = "rollouts/"
"""Directives are targets of the rollout role under this path."""

MODES: Final = ("canary",)
KINDS: Final = ("deploy", "rollback")

_ID: Final = re.compile(r"[a-z0-9-]{1,64}")
_MODEL: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_BUNDLE: Final = re.compile(r"bundles/[a-z0-9-]{1,40}/[A-Za-z0-9._-]{1,130}")
_LARGEST: Final = 2**53
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
        mode: how the bundle is introduced; ``canary``.
        percent_bp: share of the fleet in basis points, 0 to 10000.
        selector: pairs of label and value that a device must all have; see
            :func:`agent.trust.selects`.
        stage: index of the stage, for people and logs.
        halt: nobody starts to install it any more; who has it keeps it.
        kind: ``deploy``, or ``rollback``: whoever has this bundle leaves it.
        not_before_s: installing begins at this time, in seconds since the epoch; 0 is at once.
        created_s: when the rollout was created, in seconds since the epoch.
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
        return {
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
        )


_KEYS: Final = frozenset(Directive.__dataclass_fields__)


class _Fields:
    """The keys of one directive, each checked as it is taken."""

    def __init__(self, value: Mapping[Any, Any]) -> None:
        self._name = f"directive {str(value.get('id', '?'))[:64]!r}"
        if set(value) != _KEYS:
            missing = sorted(_KEYS - set(value))
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

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self._value[key]
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._refuse(key, f"text of the form {pattern.pattern}")
        return value

    def word(self, key: str, words: tuple[str, ...]) -> str:
        value = self._value[key]
        if value not in words:
            raise self._refuse(key, f"one of {', '.join(words)}")
        return str(value)

    def whole(self, key: str, largest: int = _LARGEST) -> int:
        value = self._value[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
            raise self._refuse(key, f"a whole number from 0 to {largest}")
        return value

    def flag(self, key: str) -> bool:
        value = self._value[key]
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
