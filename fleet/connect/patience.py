"""How long a target of webhooks is waited for. Pure.

Rules kept here: each failure in a row doubles the time to the next try, from 5 seconds to 6 hours; a
target that asks for more time gets it, up to the same 6 hours; after 3 days an event is given up.
"""

from dataclasses import dataclass

__all__ = ["Patience"]


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds. ``most_pending``: more events than that, and the oldest are given up."""

    first_s: float = 5.0
    most_s: float = 6 * 3600.0
    give_up_s: float = 3 * 86_400.0
    most_pending: int = 10_000

    def wait_s(self, failures: int, asked_s: float = 0.0) -> float:
        """Time to the next try after so many failures in a row; ``asked_s`` is what the target asks."""
        doublings = min(max(failures - 1, 0), 32)  # beyond it only the limit counts
        return min(max(self.first_s * 2.0**doublings, asked_s), self.most_s)

    def too_old_s(self, now_s: float) -> float:
        """Events from before this time are given up once a try has failed."""
        return now_s - self.give_up_s
