"""The chain of the audit log: each entry's digest covers the entry and the digest before it. Pure.

``sha256 = SHA-256(previous sha256 as 32 bytes + the entry as canonical JSON)``, where canonical is: UTF-8, keys
sorted, no blanks, and nothing but texts and whole numbers, so that there is one way to write it. The first entry is
number 1 and follows 32 zero bytes.

Rules kept here: an entry that was altered, removed, put in between or moved breaks the chain at its place; that the
newest are missing is seen only by who knows a later head.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from fleet.errors import RefusedError, RequestError

__all__ = ["START", "Entry", "Head", "check_chain", "follows", "parse_entry", "parse_head"]

ZERO: Final = "0" * 64
MAX_NAME_CHARS: Final = 64
MAX_OBJECT_CHARS: Final = 256
MAX_REASON_CHARS: Final = 1000


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry that somebody knows of; number 0 is the empty log."""

    number: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.number}:{self.sha256}"


START: Final = Head(0, ZERO)


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation, or one attempt at it. ``at_ms`` since the epoch; ``outcome``: done, refused or failed."""

    at_ms: int
    token_id: str
    name: str
    role: str
    operation: str
    object: str
    outcome: str
    reason: str = ""
    number: int = 0
    previous: str = ZERO
    sha256: str = ""

    @property
    def head(self) -> Head:
        return Head(self.number, self.sha256)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def expected_sha256(self) -> str:
        """The digest this entry should have."""
        said = {
            key: value for key, value in asdict(self).items() if key not in {"previous", "sha256"}
        }
        text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(bytes.fromhex(self.previous) + text.encode()).hexdigest()


def follows(head: Head, entry: Entry) -> Entry:
    """The entry as the one after ``head``; texts are cut where they are too long, and printable."""
    placed = replace(
        entry,
        number=head.number + 1,
        previous=head.sha256,
        name=_cut(entry.name, MAX_NAME_CHARS),
        operation=_cut(entry.operation, MAX_NAME_CHARS),
        object=_cut(entry.object, MAX_OBJECT_CHARS),
        reason=_cut(entry.reason, MAX_REASON_CHARS),
    )
    return replace(placed, sha256=placed.expected_sha256())


def check_chain(
    entries: Iterable[Entry], expected: Iterable[Head] = (), after: Head = START
) -> Head:
    """The head of a whole chain, oldest entry first.

    Args:
        expected: heads known from elsewhere; each must lie on the chain.
        after: what the first entry follows.

    Raises:
        RefusedError: names the first entry that is not what was written, and what that means.
    """
    wanted = {head.number: head for head in expected if head.number > 0}
    head = after
    for entry in entries:
        _check_link(head, entry)
        known = wanted.pop(entry.number, None)
        if known is not None and known.sha256 != entry.sha256:
            raise RefusedError(
                f"entry {entry.number} of the audit log is not the one that was written: its digest is "
                f"{entry.sha256[:16]}, and {known.sha256[:16]} is known from elsewhere. The log was written anew "
                "from there on, or before"
            )
        head = entry.head
    beyond = [number for number in wanted if number > head.number]
    if beyond:
        raise RefusedError(
            f"the audit log ends at entry {head.number}, and entry {max(beyond)} is known from elsewhere: the newest "
            f"{max(beyond) - head.number} were cut off"
        )
    return head


def _check_link(head: Head, entry: Entry) -> None:
    if entry.number != head.number + 1:
        raise RefusedError(
            f"entry {entry.number} of the audit log comes after entry {head.number}: "
            f"{'entries are missing' if entry.number > head.number else 'entries were moved'}"
        )
    if entry.previous != head.sha256:
        raise RefusedError(
            f"entry {entry.number} of the audit log does not follow entry {head.number}: one of the two was altered "
            "or put in another's place"
        )
    if entry.expected_sha256() != entry.sha256:
        raise RefusedError(
            f"entry {entry.number} of the audit log was altered: its digest is another one"
        )


def parse_entry(raw: object) -> Entry:
    """An entry as ``to_json`` gives it.

    Raises:
        RequestError: it is none.
    """
    kinds = {one.name: int if one.name in {"at_ms", "number"} else str for one in fields(Entry)}
    if not isinstance(raw, Mapping) or set(raw) != set(kinds):
        raise RequestError(f"{raw!r:.80} is no entry of an audit log")
    for key, kind in kinds.items():
        if not isinstance(raw[key], kind) or isinstance(raw[key], bool):
            raise RequestError(f"an entry of the audit log has {key} = {raw[key]!r:.60}")
    entry = Entry(**raw)
    _require_digest(entry.previous)
    return entry


def parse_head(text: str) -> Head:
    """``NUMBER:SHA256``.

    Raises:
        RequestError: it is none.
    """
    number, _, digest = text.strip().partition(":")
    if not number.isascii() or not number.isdigit() or len(number) > 15:
        raise RequestError(f"{text!r:.90} is no head of an audit log: write NUMBER:SHA256")
    return Head(int(number), _require_digest(digest))


def _require_digest(text: str) -> str:
    if len(text) != len(ZERO) or any(character not in "0123456789abcdef" for character in text):
        raise RequestError(f"{text!r:.80} is no sha256 digest in lower-case hex")
    return text


def _cut(text: str, most: int) -> str:
    clean = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    return clean if len(clean) <= most else clean[: most - 1] + "…"
