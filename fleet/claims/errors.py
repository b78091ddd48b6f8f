"""What can be wrong with a claim about a bundle."""

from fleet.errors import RefusedError

__all__ = ["ClaimError"]


class ClaimError(RefusedError):
    """A claim cannot be read, is signed by nobody who is trusted, or is about something else (exit code 3)."""
