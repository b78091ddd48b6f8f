"""What the offline release role says of a bundle: who may run it, and how fast it may spread.

Rules kept here:

* The path names class, model and version; the signed fields must say the same, or the entry is
  unusable.
* A release without speed limits may spread at once; a release whose limits have not begun may not
  spread at all.
* Numbers are whole: signed metadata is canonical JSON, which has no fractions.
* What a device has no use for is carried and not judged: attestations are for people and the fleet manager.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agent.trust.cohort import SLOTS
from agent.trust.errors import MalformedError

__all__ = ["ATTESTATIONS_MAX", "BUNDLE_PREFIX", "BundleRelease", "bundle_path"]

BUNDLE_PREFIX: Final = "bundles/"
"""Bundles are targets of the release role under this path."""

_CLASS: Final = re.compile(r"[a-z0-9-]{1,40}")
_MODEL: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_VERSION: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LARGEST: Final = 2**53
_HARDWARE_MAX: Final = 32
_LIMITS_MAX: Final = 32
ATTESTATIONS_MAX: Final = 8
_TEXT_MAX: Final = 128


def bundle_path(device_class: str, model: str, version: str) -> str:
    """The path of a bundle in the release role, ``bundles/CLASS/MODEL-VERSION``."""
    return f"{BUNDLE_PREFIX}{device_class}/{model}-{version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRelease:
    """One signed line of the release role.

    Attributes:
        path: ``bundles/CLASS/MODEL-VERSION``.
        sha256: digest of the manifest.
        length: length of the manifest in bytes.
        model: name of the model.
        version: version of the bundle.
        device_class: class of devices it is made for.
        hardware: machine architectures it runs on; empty for any.
        release: counts up for each class and model.
        min_release: no device that has seen this installs a release of the model below it.
        signed_at_s: when it was signed, in seconds since the epoch.
        limits: pairs of seconds since ``signed_at_s`` and basis points; empty for no limit.
        agent: PEP 440 specifier of agent versions; empty for any.
        onnxruntime: PEP 440 specifier of ONNX Runtime versions; empty for any.
        attestations: digests of what attests that the bundle passed its checks.
    """

    path: str
    sha256: str
    length: int
    model: str
    version: str
    device_class: str
    hardware: tuple[str, ...] = ()
    release: int = 1
    min_release: int = 0
    signed_at_s: int = 0
    limits: tuple[tuple[int, int], ...] = ()
    agent: str = ""
    onnxruntime: str = ""
    attestations: tuple[str, ...] = ()

    def limit_bp(self, now_s: float) -> int:
        """The largest share of the fleet that may have the bundle at ``now_s``, in basis points."""
        if not self.limits:
            return SLOTS
        age_s = now_s - self.signed_at_s
        return max((share for after_s, share in self.limits if after_s <= age_s), default=0)

    def to_json(self) -> dict[str, Any]:
        """The ``custom`` object of the target; path, digest and length stand in the target.

        ``attestations`` is left out when there are none, so that agents from before it read the release.
        """
        attestations = {"attestations": list(self.attestations)} if self.attestations else {}
        return attestations | {
            "model": self.model,
            "version": self.version,
            "class": self.device_class,
            "hardware": list(self.hardware),
            "release": self.release,
            "min_release": self.min_release,
            "signed_at_s": self.signed_at_s,
            "limits": [list(limit) for limit in self.limits],
            "agent": self.agent,
            "onnxruntime": self.onnxruntime,
        }

    @classmethod
    def from_target(
        cls, path: str, sha256: object, length: object, custom: object
    ) -> "BundleRelease":
        """Parse one target of the release role.

        Raises:
            MalformedError: a key is missing, unknown or of the wrong kind, or differs from the
                path.
        """
        fields = _Fields(path, custom)
        release = cls(
            path=path,
            sha256=fields.check_text("sha256", sha256, _SHA256),
            length=fields.check_whole("length", length),
            model=fields.text("model", _MODEL),
            version=fields.text("version", _VERSION),
            device_class=fields.text("class", _CLASS),
            hardware=fields.hardware(),
            release=fields.whole("release"),
            min_release=fields.whole("min_release"),
            signed_at_s=fields.whole("signed_at_s"),
            limits=fields.limits(),
            agent=fields.specifier("agent"),
            onnxruntime=fields.specifier("onnxruntime"),
            attestations=fields.attestations(),
        )
        if bundle_path(release.device_class, release.model, release.version) != path:
            raise MalformedError(
                f"release {path!r} is signed for model {release.model}, version {release.version}, "
                "class "
                f"{release.device_class}, which is another path"
            )
        return release


_KEYS: Final = frozenset({
    "model", "version", "class", "hardware", "release", "min_release", "signed_at_s", "limits",
    "agent", "onnxruntime",
})  # fmt: skip
_OPTIONAL: Final = frozenset({"attestations"})


class _Fields:
    """The keys of one release, each checked as it is taken."""

    def __init__(self, path: str, custom: object) -> None:
        self._name = f"release {path[:200]!r}"
        if not isinstance(custom, Mapping):
            raise MalformedError(
                f"{self._name} has no custom object; only Muster's own releases are understood"
            )
        if set(custom) - _OPTIONAL != _KEYS:
            missing = sorted(_KEYS - set(custom))
            unknown = sorted(str(key)[:64] for key in set(custom) - _KEYS - _OPTIONAL)
            raise MalformedError(
                f"{self._name} does not have the keys this agent knows (missing: {missing}, "
                f"unknown: {unknown})"
            )
        self._custom = custom

    def _refuse(self, key: str, value: object, expected: str) -> MalformedError:
        return MalformedError(f"{self._name}: {key} = {str(value)[:80]!r} is not {expected}")

    def check_text(self, key: str, value: object, pattern: re.Pattern[str]) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._refuse(key, value, f"text of the form {pattern.pattern}")
        return value

    def check_whole(self, key: str, value: object, largest: int = _LARGEST) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
            raise self._refuse(key, value, f"a whole number from 0 to {largest}")
        return value

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        return self.check_text(key, self._custom[key], pattern)

    def whole(self, key: str) -> int:
        return self.check_whole(key, self._custom[key])

    def specifier(self, key: str) -> str:
        value = self._custom[key]
        if not isinstance(value, str) or len(value) > _TEXT_MAX:
            raise self._refuse(key, value, f"text of at most {_TEXT_MAX} characters")
        return value

    def hardware(self) -> tuple[str, ...]:
        value = self._custom["hardware"]
        if not isinstance(value, list) or len(value) > _HARDWARE_MAX:
            raise self._refuse("hardware", value, f"a list of at most {_HARDWARE_MAX} names")
        return tuple(self.check_text("hardware", name, _VERSION) for name in value)

    def attestations(self) -> tuple[str, ...]:
        value = self._custom.get("attestations", [])
        if not isinstance(value, list) or len(value) > ATTESTATIONS_MAX:
            raise self._refuse(
                "attestations", value, f"a list of at most {ATTESTATIONS_MAX} digests"
            )
        return tuple(self.check_text("attestations", digest, _SHA256) for digest in value)

    def limits(self) -> tuple[tuple[int, int], ...]:
        value = self._custom["limits"]
        if not isinstance(value, list) or len(value) > _LIMITS_MAX:
            raise self._refuse("limits", value, f"a list of at most {_LIMITS_MAX} pairs")
        pairs = []
        for pair in value:
            if not isinstance(pair, list) or len(pair) != 2:
                raise self._refuse("limits", value, "a list of [seconds, basis points]")
            pairs.append(
                (self.check_whole("limits", pair[0]), self.check_whole("limits", pair[1], SLOTS))
            )
        return tuple(pairs)
