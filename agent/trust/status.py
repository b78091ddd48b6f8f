"""What a device tells the fleet about its signed metadata: what it refused, and what it cannot do about a bundle.

Rules kept here: values only; every list and text has a limit; a flood of refusals changes the count and not what is
worth telling at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from agent.trust.decision import Decision, Reason, Verb
from agent.trust.errors import RefusedMetadataError

__all__ = ["STORE_CODE", "TrustStatus", "code_of", "notices_of"]

STORE_CODE: Final = "trust_store"
"""Code of a refusal because the device's own trust store cannot be used."""

_TEXT_MAX: Final = 500
_NOTICES_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class TrustStatus:
    """Since the agent started.

    Attributes:
        code: of the newest refusal, as :mod:`agent.trust.errors` names them; "" when there was none.
        text: why, for people.
        refused_s: when, in seconds since the epoch by the device's clock.
        refused: how many refusals there were.
        refusing: nothing was accepted since.
        notices: what else the fleet should know, at most 8.
    """

    code: str = ""
    text: str = ""
    refused_s: float = 0.0
    refused: int = 0
    refusing: bool = False
    notices: tuple[str, ...] = ()

    @property
    def news(self) -> tuple[object, ...]:
        """What is worth an inventory of its own when it changes."""
        return self.code, self.refusing, self.notices

    def after_refusal(self, code: str, text: str, now_s: float) -> "TrustStatus":
        """After one more refusal."""
        return replace(
            self,
            code=code,
            text=text[:_TEXT_MAX],
            refused_s=now_s,
            refused=self.refused + 1,
            refusing=True,
        )

    def after_success(self) -> "TrustStatus":
        """After metadata was verified and stored; what was refused before stays told."""
        return replace(self, refusing=False)

    def with_notices(self, notices: Iterable[str]) -> "TrustStatus":
        """With other notices, cut to their limits."""
        kept = tuple(text[:_TEXT_MAX] for text in notices if text)[:_NOTICES_MAX]
        return replace(self, notices=kept)


def code_of(error: Exception) -> str:
    """The code of a refusal."""
    return error.code if isinstance(error, RefusedMetadataError) else RefusedMetadataError.code


def notices_of(decisions: Iterable[Decision]) -> list[str]:
    """What decisions ask for and this device cannot do, so that no deployment reports it."""
    stuck = (Reason.NOTHING_TO_REVERT_TO, Reason.BLOCKED)
    return [
        f"{decision.reason.value}: {decision.text}"
        for decision in decisions
        if decision.verb is Verb.KEEP and decision.reason in stuck
    ]
