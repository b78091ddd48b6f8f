"""The audit trail: every decision about a rollout, who took it, and the numbers it was made from.

Rules kept here: entries are added and never changed; an entry is written in the transaction that
makes the change it tells of, so there is neither a change without a reason nor the reverse.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select

from fleet.rollout.changes import CONTROLLER, OPERATOR
from fleet.store.tables import decisions

__all__ = ["CONTROLLER", "OPERATOR", "Entry", "append", "last_entry", "trail"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision. ``stage`` is the stage it led to, or stayed in."""

    rollout_id: str
    at_s: float
    actor: str
    action: str
    from_state: str
    to_state: str
    stage: int
    verdict: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0  # given by the database

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "rollout_id": self.rollout_id,
            "at_s": self.at_s,
            "actor": self.actor,
            "action": self.action,
            "from_state": self.from_state,
            "to_state": self.to_state,
            "stage": self.stage,
            "verdict": self.verdict,
            "reason": self.reason,
            "evidence": dict(self.evidence),
        }


def append(connection: Connection, entry: Entry) -> None:
    """Add an entry; its id is the database's."""
    values = entry.to_json()
    del values["id"]
    connection.execute(insert(decisions).values(**values))


def last_entry(connection: Connection, rollout_id: str) -> Entry | None:
    """The newest entry about a rollout."""
    found = trail(connection, rollout_id, limit=1)
    return found[0] if found else None


def trail(connection: Connection, rollout_id: str, limit: int, before: int = 0) -> list[Entry]:
    """Entries about a rollout, newest first; ``before`` is an entry id to page on from."""
    query = select(decisions).where(decisions.c.rollout_id == rollout_id)
    if before > 0:
        query = query.where(decisions.c.id < before)
    rows = connection.execute(query.order_by(decisions.c.id.desc()).limit(limit))
    return [Entry(**row._mapping) for row in rows]
