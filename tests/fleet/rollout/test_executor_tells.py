"""The executor puts events into the outbox, each in the transaction of its decision."""

from pathlib import Path

import pytest
from sqlalchemy import select

from fleet.rollout import records
from fleet.rollout.states import Event
from fleet.store.tables import decisions, outbox
from tests.fleet.rollout.fleet_rows import Lab, asked


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    lab.register()
    return lab


def told(lab: Lab) -> list[str]:
    with lab.store.read() as connection:
        return list(connection.scalars(select(outbox.c.type).order_by(outbox.c.id)))


async def test_a_rollout_is_told_from_start_to_end(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(asked(release, 5000, 10_000))
    await lab.executor.tick()
    assert told(lab) == ["rollout.started"]  # it bakes
    lab.now_s += 11
    for _ in range(3):
        await lab.executor.tick()  # over, and nobody has reported: once
        lab.heard()
    assert told(lab) == ["rollout.started", "rollout.held"]
    with lab.store.read() as connection:
        held = connection.execute(select(outbox).order_by(outbox.c.id.desc())).first()
        assert held is not None
        entry = connection.execute(select(decisions).order_by(decisions.c.id.desc())).first()
        assert entry is not None
    assert held.data["reason"] == entry.reason
    assert "more canary devices committed and reported" in held.data["waits"][0]
    assert held.data["numbers"]["canary"]["targeted"] == entry.evidence["cohort"]["targeted"]
    await lab.executor.change("r1", Event.PAUSE, reason="lunch")
    await lab.executor.change("r1", Event.ROLLBACK)
    assert told(lab)[2:] == ["rollout.paused", "rollout.rolled_back"]


async def test_what_is_taken_back_is_not_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    release = lab.release("1")
    await lab.executor.start(asked(release, 5000, 10_000))

    def fail(*_arguments: object) -> bool:
        raise RuntimeError("stop")

    monkeypatch.setattr(records, "sync_directives", fail)
    with pytest.raises(RuntimeError, match="stop"):
        await lab.executor.change("r1", Event.PAUSE)
    assert told(lab) == ["rollout.started"]
