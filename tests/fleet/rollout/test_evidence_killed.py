"""The process dies at each write of a stage's life, one after another, and goes on: it always ends the same.

As in test_executor_killed.py, a death is an exception that nothing catches; here the writes are those of intake,
rings, looks and decisions, and what must be the same is every row of them.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import event, select

from fleet.store.tables import (
    baseline_hours,
    decision_snapshots,
    decisions,
    looks,
    ring_counts,
    rings,
    rollouts,
    served,
)
from tests.support.evidence_fleet import EvidenceFleet, store_like

TABLES = (
    baseline_hours,
    rings,
    ring_counts,
    served,
    looks,
    decisions,
    decision_snapshots,
    rollouts,
)
GUARDS = {"max_error_rate": 0.9, "metrics": {"error_rate": 1.5}, "silence_s": 300.0}


class KilledError(BaseException):
    """Stands for SIGKILL: no except clause of ours catches it."""


class Death:
    """Dies after the ``at``-th write; 0 never."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.written = at, 0

    def after(self, _c: Any, cursor: Any, statement: str, *_more: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            self.written += 1
            if self.written == self.at:
                cursor.close()  # the traceback keeps it, and it would keep the lock
                raise KilledError


def lived(home: Path, template: Path, death: Death) -> dict[str, list[Any]]:
    """A stage of six devices that passes, and the beginning of the next; every row it left."""
    fleet = EvidenceFleet(store_like(template, home), size=6)
    fleet.history(hours=1, windows_per_hour=1)
    fleet.start(5000, 10_000, bake_s=120.0, guards=GUARDS)
    event.listen(fleet.store.engine, "after_cursor_execute", death.after)
    steps: list[Callable[[], Any]] = [fleet.tick]
    for _ in range(3):
        rows: list[dict[str, Any]] = []

        def pass_by(rows: list[dict[str, Any]] = rows) -> None:
            fleet.now_s += 60
            fleet.install()
            rows += fleet.rows(fleet.ids)

        def arrive(rows: list[dict[str, Any]] = rows) -> None:
            with fleet.store.begin() as connection:
                fleet.report_in(connection, rows)

        steps += [pass_by, arrive, arrive, fleet.tick]
    for step in steps:
        writes = step.__name__ != "pass_by"
        if not writes:
            event.remove(fleet.store.engine, "after_cursor_execute", death.after)
        with suppress(KilledError):
            step()
            if not writes:
                event.listen(fleet.store.engine, "after_cursor_execute", death.after)
            continue
        step()  # the process starts again and the same thing is asked for
    with fleet.store.read() as connection:
        left = {table.name: sorted(map(str, connection.execute(select(table)))) for table in TABLES}
    fleet.store.close()
    return left


def test_every_death_ends_the_same(tmp_path: Path) -> None:
    template, whole = tmp_path / "template.db", Death()
    expected = lived(tmp_path / "whole", template, whole)
    assert all(expected.values()), "the story writes to every table"
    assert whole.written > 20
    for at in range(1, whole.written + 1):
        assert lived(tmp_path / str(at), template, Death(at)) == expected, f"death {at}"
