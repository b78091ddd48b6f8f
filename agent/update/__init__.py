"""One device going from bundle to bundle: states, journal, updater."""

from agent.update.errors import JournalError, ManifestMismatchError, TransitionError
from agent.update.events import Outcome
from agent.update.journal import (
    Deployment,
    Installed,
    Journal,
    JournalContent,
    ModelRecord,
    Refusal,
    Slots,
)
from agent.update.policy import UpdateLimits
from agent.update.served import ServedBundle
from agent.update.states import Event, Phase
from agent.update.updater import Updater, UpdaterPorts

__all__ = [
    "Deployment",
    "Event",
    "Installed",
    "Journal",
    "JournalContent",
    "JournalError",
    "ManifestMismatchError",
    "ModelRecord",
    "Outcome",
    "Phase",
    "Refusal",
    "ServedBundle",
    "Slots",
    "TransitionError",
    "UpdateLimits",
    "Updater",
    "UpdaterPorts",
]
