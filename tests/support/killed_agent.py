"""``fleet-agent`` that loses power at one instruction: SIGKILL around the journal's save of one phase.

``MUSTER_TEST_KILL=after:try`` dies when "try" has just been saved and nothing of it was done;
``MUSTER_TEST_KILL=before:swap`` dies when the step before "swap" was done and this was not saved yet;
``before:idle`` and ``after:idle`` are the end of a deployment. Everything else is the agent's own code.
"""

import os
import signal

from agent.adapters import journal
from agent.cli import main
from agent.update.journal import ModelRecord, Refusal

WHEN, _, PHASE = os.environ["MUSTER_TEST_KILL"].partition(":")


class KilledJournal(journal.SqliteJournal):
    """Dies at the save that the environment names; once a deployment has been under way."""

    _seen = False

    def save(self, record: ModelRecord, refusal: Refusal | None = None) -> None:
        phase = record.deployment.phase.value if record.deployment is not None else "idle"
        self._seen = self._seen or record.deployment is not None
        hit = self._seen and phase == PHASE
        if hit and WHEN == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().save(record, refusal)
        if hit and WHEN == "after":
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    import agent.daemon

    assert agent.daemon.SqliteJournal is journal.SqliteJournal
    agent.daemon.SqliteJournal = KilledJournal  # type: ignore[misc]
    main()
