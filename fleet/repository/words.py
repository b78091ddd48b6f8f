"""What a new version of a role changes, in words, for the person who is asked to sign it.

Rules kept here:

* The words come from the two versions alone, never from what somebody has written about them.
* Nothing that differs goes unsaid: what has no words of its own is named as a field that differs.
* What others wrote is shown as one printable line of bounded length.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from tuf.api.metadata import Key, Metadata, Role, Root, Signed, TargetFile, Targets

from agent.runtime.verdict import clean_text
from agent.trust import BundleRelease
from agent.trust.errors import MalformedError
from agent.trust.release import BUNDLE_PREFIX
from fleet.repository.claims import CLAIMS_FIELD, policy_words
from fleet.repository.emergency import emergency_words
from fleet.repository.keys import key_name

__all__ = ["changes", "day"]

LINE_CHARS: Final = 600
DAY_S: Final = 86_400
_OWN_WORDS: Final = frozenset({"version", "expires", "targets", "delegations", "roles", "keys"})


def changes(base: "Metadata[Any]", following: "Metadata[Any]") -> tuple[str, ...]:
    """Each difference between the version that is published and the one to be signed, the weightiest first."""
    before, after = base.signed, following.signed
    lines = [clean_text(line, LINE_CHARS) for line in _lines(before, after)]
    if not lines:
        lines = ["nothing but the time: the same content is signed for longer"]
    return (*lines, _period(before, after))


def day(when: datetime) -> str:
    """A date as people read it, in UTC."""
    return when.strftime("%Y-%m-%d %H:%M UTC")


def _lines(before: Signed, after: Signed) -> Iterator[str]:
    if isinstance(before, Root) and isinstance(after, Root):
        yield from _role_lines(before.roles, after.roles, before.keys, after.keys)
    if isinstance(before, Targets) and isinstance(after, Targets):
        yield from _delegation_lines(before, after)
        yield from policy_words(before, after)
        said = emergency_words(before, after)
        yield from _target_lines(before.targets, after.targets) if said is None else said
    old, new = before.to_dict(), after.to_dict()
    worded = _OWN_WORDS | ({CLAIMS_FIELD} if isinstance(after, Targets) else set())
    for field in sorted((set(old) | set(new)) - worded):
        if old.get(field) != new.get(field):
            yield f"field {field}: {_short(old.get(field))} becomes {_short(new.get(field))}"


def _period(before: Signed, after: Signed) -> str:
    days = (after.expires - before.expires).total_seconds() / DAY_S
    return (
        f"version {before.version} becomes {after.version}; it holds until {day(after.expires)}, "
        f"{abs(days):.0f} days {'longer' if days >= 0 else 'SHORTER'} than now"
    )


# --- bundles, directives, emergencies -------------------------------------------------------------


def _target_lines(
    before: Mapping[str, TargetFile], after: Mapping[str, TargetFile]
) -> Iterator[str]:
    for path in sorted(set(after) - set(before)):
        yield f"adds {_target(path, after[path])}"
    for path in sorted(set(before) - set(after)):
        yield f"REMOVES {path}"
    for path in sorted(set(before) & set(after)):
        if before[path] != after[path]:
            yield f"CHANGES {path} from {_target(path, before[path])} to {_target(path, after[path])}"


def _target(path: str, target: TargetFile) -> str:
    sha256 = target.hashes.get("sha256", "")
    custom = target.unrecognized_fields.get("custom")
    if path.startswith(BUNDLE_PREFIX):
        try:
            release = BundleRelease.from_target(path, sha256, target.length, custom)
        except MalformedError as error:
            return f"{path}, which no device understands: {error}"
        return f"{path}: {_release(release)}"
    return f"{path}: {_short(custom)}, sha256 {sha256}, {target.length} bytes"


def _release(release: BundleRelease) -> str:
    parts = [
        f"release {release.release} of {release.model} for class {release.device_class}",
        f"hardware {', '.join(release.hardware) or 'any'}",
        f"agent {release.agent or 'any'}",
        f"onnxruntime {release.onnxruntime or 'any'}",
    ]
    if release.attestations:
        parts.append(f"attested by {', '.join(release.attestations)}")
    if release.min_release:
        parts.append(f"FROM NOW ON NO RELEASE BELOW {release.min_release}")
    if release.limits:
        speed = ", ".join(f"{share / 100:g} % after {after} s" for after, share in release.limits)
        parts.append(f"at most {speed}")
    else:
        parts.append("no speed limit")
    return "; ".join([*parts, f"manifest sha256 {release.sha256}"])


# --- who may sign ---------------------------------------------------------------------------------


def _delegation_lines(before: Targets, after: Targets) -> Iterator[str]:
    old = before.delegations
    new = after.delegations
    old_roles: Mapping[str, Role] = (old and old.roles) or {}
    new_roles: Mapping[str, Role] = (new and new.roles) or {}
    yield from _role_lines(old_roles, new_roles, old.keys if old else {}, new.keys if new else {})
    kept = [name for name in old_roles if name in new_roles]
    if kept != [name for name in new_roles if name in old_roles]:
        yield f"the order of trust becomes {', '.join(new_roles)}"


def _role_lines(
    before: Mapping[str, Role],
    after: Mapping[str, Role],
    old_keys: Mapping[str, Key],
    new_keys: Mapping[str, Key],
) -> Iterator[str]:
    for name in after:
        if name not in before:
            role = after[name]
            names = _names(role.keyids, new_keys)
            yield f"adds the role {name}: {role.threshold} of {names} sign{_speaks(role)}"
    for name in before:
        if name not in after:
            yield f"REMOVES the role {name}"
    for name in after:
        if name in before and before[name].to_dict() != after[name].to_dict():
            yield from _changed_role(name, before[name], after[name], old_keys, new_keys)
    for keyid in sorted(set(old_keys) & set(new_keys)):
        if old_keys[keyid].to_dict() != new_keys[keyid].to_dict():
            yield f"CHANGES what is said of key {keyid[:12]}: {_short(new_keys[keyid].to_dict())}"


def _changed_role(
    name: str,
    before: Role,
    after: Role,
    old_keys: Mapping[str, Key],
    new_keys: Mapping[str, Key],
) -> Iterator[str]:
    gone = [keyid for keyid in before.keyids if keyid not in after.keyids]
    come = [keyid for keyid in after.keyids if keyid not in before.keyids]
    if come:
        yield f"role {name}: {_names(come, new_keys)} may sign from now on"
    if gone:
        yield f"role {name}: {_names(gone, old_keys)} may NOT sign any more"
    if before.threshold != after.threshold:
        yield f"role {name}: {after.threshold} signatures are needed, not {before.threshold}"
    old, new = before.to_dict(), after.to_dict()
    for field in sorted((set(old) | set(new)) - {"keyids", "threshold"}):
        if old.get(field) != new.get(field):
            yield (
                f"role {name}: {field} {_short(old.get(field))} becomes {_short(new.get(field))}"
            )


def _names(keyids: Sequence[str], keys: Mapping[str, Key]) -> str:
    named = [
        f"{key_name(keys[keyid])} ({keyid[:12]})" if keyid in keys else keyid[:12]
        for keyid in keyids
    ]
    return ", ".join(named) or "no key"


def _speaks(role: Role) -> str:
    paths = role.to_dict().get("paths")
    return f"; it speaks for {', '.join(paths)}" if paths else ""


def _short(value: object) -> str:
    return json.dumps(value, sort_keys=True)[:LINE_CHARS]
