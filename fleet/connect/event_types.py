"""The names of events, as webhooks are configured with them and as they are sent."""

from typing import Final

__all__ = ["EVENT_TYPES", "HELD", "STARTED", "TEST"]

STARTED: Final = "rollout.started"
HELD: Final = "rollout.held"
TEST: Final = "webhook.test"
EVENT_TYPES: Final = (
    STARTED,
    "rollout.stage",
    HELD,
    "rollout.promoted",
    "rollout.rolled_back",
    "rollout.stratum_stopped",
    "rollout.paused",
    "rollout.resumed",
    "rollout.approved",
    "rollout.aborted",
    "rollout.superseded",
)
"""Everything a webhook can ask for; a test event goes to whoever is tested."""
