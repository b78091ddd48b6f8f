"""What external checks answered, in the database: the newest answer of each."""

from dataclasses import asdict

from sqlalchemy import Connection, delete, select

from fleet.rollout.record import Rollout
from fleet.rollout.snapshot import CheckAnswer
from fleet.rollout.states import FINAL
from fleet.store.tables import check_results, rollouts
from fleet.store.upsert import insert

__all__ = ["keep_answer", "prune_answers", "read_answers"]


def read_answers(connection: Connection, rollout: Rollout) -> tuple[CheckAnswer, ...]:
    """The answers about the run of the stage that the rollout is in, by URL."""
    if not rollout.spec.checks:
        return ()
    column = check_results.c
    query = (
        select(
            column.url,
            column.stage_started_s,
            column.asked_s,
            column.answered_s,
            column.verdict,
            column.reason,
        )
        .where(column.rollout_id == rollout.id, column.stage_started_s == rollout.stage_started_s)
        .order_by(column.url)
    )
    return tuple(CheckAnswer(*row) for row in connection.execute(query))


def keep_answer(connection: Connection, rollout: Rollout, answer: CheckAnswer) -> None:
    """Keep an answer in the place of the one before it."""
    values = {**asdict(answer), "stage": rollout.stage}
    row = insert(connection, check_results).values(rollout_id=rollout.id, **values)
    key = [check_results.c.rollout_id, check_results.c.url]
    connection.execute(row.on_conflict_do_update(index_elements=key, set_=values))


def prune_answers(connection: Connection) -> int:
    """Delete the answers about rollouts that are over: their decisions have what counted."""
    over = select(rollouts.c.id).where(rollouts.c.state.in_(sorted(FINAL)))
    return connection.execute(
        delete(check_results).where(check_results.c.rollout_id.in_(over))
    ).rowcount
