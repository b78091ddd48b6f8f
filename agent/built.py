"""When this agent was built: a time that is past on every device it runs on, whatever the clock says."""

from typing import Final

__all__ = ["BUILT_S"]

BUILT_S: Final = 1_748_736_000.0
"""Seconds since the epoch, 1 June 2025. Raised with each release, never beyond the day of the release."""
