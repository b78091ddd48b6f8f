"""The process dies at each write there is, one after another, and starts again: it always ends the same.

A death is an exception that nothing catches, raised after a row was written, after a transaction was committed, after
a file of the repository was written, or before or after the pack went out. Then everything is opened anew over the
same files, the step that was interrupted is asked for again, and the story goes on.
"""

import asyncio
import copy
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, select

import fleet.repository.repository
from agent.trust import BundleRelease
from fleet.errors import ConflictError
from fleet.rollout.states import Event, State
from fleet.store.engine import Store, open_store
from fleet.store.tables import outbox
from tests.fleet.rollout.fleet_rows import Lab, asked

DEVICES = tuple(f"cam-{number}" for number in range(12))


class KilledError(BaseException):
    """Stands for SIGKILL: no except clause of ours catches it."""


EVIDENCE = ("histories", "served", "ring_counts", "decision_snapshots")


def _is_elsewhere(statement: str) -> bool:
    """Deaths at the writes of evidence are test_evidence_killed.py's: a story costs less there."""
    return statement.startswith(tuple(f"INSERT INTO {table} " for table in EVIDENCE))


@dataclass
class Death:
    """Dies at the ``at``-th write; 0 never. Counts only while ``armed``."""

    at: int = 0
    armed: bool = False
    written: list[str] = field(default_factory=list)

    def wrote(self, what: str) -> None:
        if not self.armed:
            return
        self.written.append(what)
        if len(self.written) == self.at:
            self.armed = False
            raise KilledError(what)


class MortalStore(Store):
    """Counts each row written and each commit."""

    death: Death

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        with super().begin() as connection:
            yield connection
        self.death.wrote("commit")


class MortalLab(Lab):
    def __init__(self, home: Path, death: Death) -> None:
        self.death = death
        super().__init__(home, open_database=self._open)

    def _open(self, path: Path) -> Store:
        store = MortalStore(open_store(path).engine)
        store.death = self.death

        def after(_c: Any, cursor: Any, statement: str, *_more: Any) -> None:
            if statement.startswith(("INSERT", "UPDATE", "DELETE")) and not _is_elsewhere(
                statement
            ):
                try:
                    self.death.wrote(statement.partition(" ")[0])
                except KilledError:
                    cursor.close()  # the traceback keeps it, and it would keep the lock
                    raise

        event.listen(store.engine, "after_cursor_execute", after)
        return store

    async def publish(self) -> None:
        self.death.wrote("about to publish")
        await super().publish()
        self.death.wrote("published")


@pytest.fixture
def mortal_files(monkeypatch: pytest.MonkeyPatch) -> Callable[[Death], None]:
    """Let each durable write of the repository count."""
    real = fleet.repository.repository.write_durable

    def arm(death: Death) -> None:
        def write(path: Path, *args: Any, **kwargs: Any) -> None:
            real(path, *args, **kwargs)
            death.wrote(f"file {path.name}")

        monkeypatch.setattr(fleet.repository.repository, "write_durable", write)

    return arm


@dataclass
class Story:
    """Two good rollouts, then a bad one; each step can be asked for again."""

    lab: MortalLab
    first: BundleRelease
    second: BundleRelease
    bad: BundleRelease

    def steps(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            lambda: self._start(self.first, 10_000),
            lambda: self._report(self.first, "r1", DEVICES),
            self._tick,
            lambda: self._start(self.second, 2500, 10_000),
            self._tick,
            lambda: self._report(self.second, "r2", self.lab.cohort(self.second, 2500)),
            self._tick,
            lambda: self._report(self.second, "r2", DEVICES),
            self._tick,
            lambda: self._start(self.bad, 2500, 10_000),
            lambda: self._change("r3", Event.PAUSE, State.PAUSED),
            lambda: self._change("r3", Event.RESUME, State.RUNNING),
            lambda: self._fail(self.bad, "r3"),
            self._tick,
        ]

    async def _tick(self) -> None:
        await self.lab.executor.tick()

    async def _start(self, release: BundleRelease, *shares: int) -> None:
        """As an operator who does not know whether the answer or the request was lost."""
        try:
            await self.lab.executor.start(asked(release, *shares))
        except ConflictError:
            newest = (await self.lab.executor.rollouts())[0]
            assert newest.bundle == release.path

    async def _change(self, rollout_id: str, happening: Event, wanted: State) -> None:
        try:
            await self.lab.executor.change(rollout_id, happening)
        except ConflictError:
            snapshot, _, _ = await self.lab.executor.observe(rollout_id)
            assert snapshot.rollout.state is wanted

    async def _report(self, release: BundleRelease, rollout_id: str, ids: Any) -> None:
        with self._alive():
            self.lab.installed(release, rollout_id, ids)
            self.lab.now_s += 11
            self.lab.window(release, rollout_id, ids)

    async def _fail(self, release: BundleRelease, rollout_id: str) -> None:
        with self._alive():
            self.lab.failed(
                release, rollout_id, self.lab.cohort(release, 2500), "reverted", "error_rate"
            )

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Reports are the devices' writes, not the executor's."""
        armed, self.lab.death.armed = self.lab.death.armed, False
        yield
        self.lab.death.armed = armed


async def live(lab: MortalLab, story: Story) -> None:
    """Every step in order; after a death, all anew and the same step again."""
    lab.death.armed = True
    for step in story.steps():
        try:
            await step()
        except KilledError:
            lab.store.close()
            lab.reopen()
            await lab.executor.reconcile()
            await step()
    lab.death.armed = False


async def end_of(lab: MortalLab) -> dict[str, Any]:
    """What must be the same however often it died. Reasons and times are the clock's."""
    rollouts = await lab.executor.rollouts()
    trails = {
        one.id: [
            (entry.action, entry.from_state, entry.to_state, entry.stage)
            for entry in reversed(await lab.executor.trail(one.id, limit=1000))
            if entry.action != "hold"
        ]
        for one in rollouts
    }
    with lab.store.read() as connection:
        told = connection.execute(
            select(outbox.c.rollout_id, outbox.c.type)
            .where(outbox.c.type != "rollout.held")
            .order_by(outbox.c.id)
        )
        told_of = [tuple(row) for row in told]
    return {
        "told": told_of,  # one event a decision, in order
        "states": [(one.id, str(one.state), one.stage) for one in rollouts],
        "trails": trails,
        "directives": [
            (d.id, d.kind, d.percent_bp, d.halt, d.sha256)
            for d in lab.signed.repository.directives()
        ],
    }


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A fleet with three published bundles, made once: keys and migrations cost most."""
    lab = MortalLab(tmp_path_factory.mktemp("killed") / "template", Death())
    lab.register(DEVICES)
    story = Story(lab, *(lab.release(version) for version in "123"))
    lab.store.close()
    return story


def copy_of(template: Story, home: Path, death: Death) -> Story:
    """The same fleet in a folder of its own, opened anew."""
    shutil.copytree(template.lab.home, home)
    lab, signed = copy.copy(template.lab), copy.copy(template.lab.signed)
    lab.home, lab.signed, lab.death, lab.packs = home, signed, death, []
    signed.home = home
    lab.open_database = lab._open
    lab.reopen()
    return replace(template, lab=lab)


PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_every_death_ends_the_same(
    part: int, template: Story, tmp_path: Path, mortal_files: Callable[[Death], None]
) -> None:
    count = Death()
    mortal_files(count)
    expected = asyncio.run(_end(copy_of(template, tmp_path / f"whole-{part}", count)))
    assert expected["states"] == [
        ("r3", "rolled_back", 0), ("r2", "promoted", 1), ("r1", "promoted", 0),
    ]  # fmt: skip
    assert [directive[:2] for directive in expected["directives"]] == [
        ("r3", "rollback"), ("r2", "deploy"),
    ]  # fmt: skip
    assert {"INSERT", "UPDATE", "DELETE", "commit", "published"} <= set(count.written)
    assert any(what.startswith("file ") for what in count.written)
    for at in range(1 + part, len(count.written) + 1, PARTS):
        death = Death(at)
        mortal_files(death)
        died_at = f"death {at}: {count.written[at - 1]}"
        ended = asyncio.run(_end(copy_of(template, tmp_path / str(at), death)))
        assert len(death.written) >= at, died_at
        assert ended == expected, died_at
        shutil.rmtree(tmp_path / str(at))


async def _end(story: Story) -> dict[str, Any]:
    lab = story.lab
    await live(lab, story)
    ended = await end_of(lab)
    stored = [(d.id, d.kind, d.percent_bp, d.halt, d.sha256) for d in lab.stored_directives()]
    assert stored == ended["directives"]
    assert lab.packs[-1] == lab.signed.repository.pack(), "what is signed has gone out"
    lab.store.close()
    return ended
