"""How deep JSON lies, told by a look at its bytes.

Rules kept here: whoever reads, compares or shows JSON takes a frame of the stack for each level, and how many are left
depends on who asks. So what lies deeper than anything of ours is refused before it is read, by a look that takes none.
"""

import re
from typing import Final

__all__ = ["is_deeper"]

_TEXT: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_OTHERS: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))
_OPENING: Final = frozenset(b"[{")


def is_deeper(raw: bytes, levels: int) -> bool:
    """Whether arrays and objects lie in each other deeper than that; of what is no JSON its brackets count."""
    depth = 0
    for byte in _TEXT.sub(b"", raw).translate(None, _OTHERS):
        depth += 1 if byte in _OPENING else -1
        if depth > levels:
            return True
    return False
