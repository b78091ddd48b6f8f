"""The ways in which a device can fail a bundle for good. Pure.

Rules kept here: a device has failed in one way or in none; the words of devices become kinds in one
place.
"""

from typing import Final

__all__ = ["CRASH", "INSTALL", "KINDS", "REVERT", "SILENCE", "WORDS", "kind_of_failure"]

INSTALL: Final = "install"
CRASH: Final = "crash"
REVERT: Final = "revert"
SILENCE: Final = "silence"
KINDS: Final = (INSTALL, CRASH, REVERT, SILENCE)
WORDS: Final = {
    INSTALL: "refused the bundle",
    CRASH: "crashed with the bundle again and again",
    REVERT: "went back by themselves",
    SILENCE: "fell silent",
}
_CRASHES: Final = ("server_crashed", "active_crashes", "swap_restarts", "probation_restarts")


def kind_of_failure(outcome: str, reason_code: str) -> str | None:
    """The kind of an outcome that a device reported; None when it is no failure.

    A trial that crashes is a failed install: the bundle has never answered then.
    """
    if outcome == "refused":
        return INSTALL
    if outcome == "reverted":
        return CRASH if reason_code in _CRASHES else REVERT
    return None
