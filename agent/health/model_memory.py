"""What the models of a server may hold together, by what their bundles state.

Rules kept here:

- The budget of a bundle is what its manifest states (``requires.memory_bytes``), where it states nothing what a trial
  allows; its trial kept the same one, with one run at a time.
- No numpy and no onnxruntime: the supervisor compares.
- Models share one process, so what is compared is the process: what it held before the first model, every loaded
  bundle's budget, and room for what the runtime itself needs once it is used. Which model took too much is not known
  here.
"""

from collections.abc import Sequence
from typing import Any, Final

from agent.ports import ModelMemory
from agent.runtime.trial_process import TrialLimits
from agent.runtime.verdict import clean_text

__all__ = ["RUNTIME_ROOM_BYTES", "model_memory"]

RUNTIME_ROOM_BYTES: Final = 64 << 20
"""For code that the first runs bring in, threads, and requests under way."""
MAX_SHARES: Final = 16
"""Said by name."""
MAX_SHARE_CHARS: Final = 120
_DEFAULT_BYTES: Final = TrialLimits().default_memory_bytes


def model_memory(said: Any, empty_bytes: int | None, held_bytes: int | None) -> ModelMemory | None:
    """What a server holds beside what it may. ``said``: a list of ``{"bundle": path, "bytes": stated or 0}``;
    ``empty_bytes`` and ``held_bytes``: of the process, before the first model and now.

    None: nothing is loaded, or something is not known. A server that runs the models of others may say anything.
    """
    if not isinstance(said, Sequence) or not said or not empty_bytes or not held_bytes:
        return None
    try:
        shares = [(str(it["bundle"]), int(it["bytes"]) or _DEFAULT_BYTES) for it in said]
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    allowed_bytes = empty_bytes + RUNTIME_ROOM_BYTES + sum(max(0, size) for _, size in shares)
    texts = [
        f"{clean_text(path, MAX_SHARE_CHARS)} {size / (1 << 20):.0f} MiB" for path, size in shares
    ]
    return ModelMemory(held_bytes, allowed_bytes, tuple(texts[:MAX_SHARES]))
