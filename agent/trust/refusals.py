"""The TUF client's errors in our words.

Rules kept here: every error the client can raise over what it was given becomes a refusal with a
code that names the attack; none of them passes as success, and none is a crash.
"""

from typing import Final

from tuf.api import exceptions as tuf_errors

from agent.trust.errors import (
    ExpiredError,
    LengthOrHashError,
    MalformedError,
    MissingMetadataError,
    OversizeError,
    RefusedMetadataError,
    RollbackError,
    SignatureError,
    TimeFloorError,
)
from agent.trust.state import TrustState

__all__ = ["CLIENT_ERRORS", "refusal_of"]

# Metadata is signed, but a stolen key can sign nonsense: whatever the client trips over is a
# refusal, not a crash.
CLIENT_ERRORS: Final = (
    tuf_errors.RepositoryError,
    tuf_errors.DownloadError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
)

_SAID_CHARS: Final = 400

_CLASSES: Final[tuple[tuple[type[Exception], type[RefusedMetadataError], str], ...]] = (
    (tuf_errors.UnsignedMetadataError, SignatureError, "is not signed by enough of the keys"),
    (tuf_errors.BadVersionNumberError, RollbackError, "is older than what was accepted before"),
    (
        tuf_errors.LengthOrHashMismatchError,
        LengthOrHashError,
        "is not the one that signed metadata names",
    ),
    (tuf_errors.DownloadLengthMismatchError, OversizeError, "is longer than allowed"),
    (tuf_errors.DownloadError, MissingMetadataError, "is not offered"),
)


def refusal_of(error: Exception, state: TrustState, now_s: float) -> RefusedMetadataError:
    """The client's error as ours."""
    if isinstance(error, tuf_errors.ExpiredMetadataError):
        return _expired(error, state, now_s)
    said = _said(error)
    for theirs, ours, meaning in _CLASSES:
        if isinstance(error, theirs):
            return ours(f"signed metadata refused: a file {meaning} ({said}); nothing was changed")
    return MalformedError(
        f"signed metadata refused: it does not have the agreed form ({type(error).__name__}: "
        f"{said}); "
        f"nothing was changed"
    )


def _said(error: Exception) -> str:
    """The client's words, which repeat the metadata's: cut, and written so that a report can carry them."""
    text = str(error)
    cut = text if len(text) <= _SAID_CHARS else f"{text[:_SAID_CHARS]}…"
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")


def _expired(error: Exception, state: TrustState, now_s: float) -> ExpiredError:
    if now_s < state.floor_s:
        return TimeFloorError(
            f"signed metadata refused: {_said(error)}. This device's clock ({now_s:.0f}) is behind the "
            "newest signed time it "
            f"has seen ({state.floor_s:.0f}), so that time counts; set the clock, and check that "
            "the fleet manager runs"
        )
    return ExpiredError(
        f"signed metadata refused: {_said(error)}. Either the fleet manager has stopped signing, "
        "something between holds "
        f"newer metadata back, or this device's clock ({now_s:.0f}) is ahead"
    )
