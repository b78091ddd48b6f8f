"""Sections of results.md and of the README that a benchmark writes itself, between two comments with its name."""

from pathlib import Path
from typing import Final

__all__ = ["RESULTS", "put_section"]

RESULTS: Final = Path(__file__).resolve().parent / "results.md"


def put_section(path: Path, name: str, text: str) -> None:
    """Put a section into a file, in place of the one before or at the end. Raises OSError."""
    begin_mark, end_mark = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    before, begin, rest = old.partition(begin_mark)
    after = rest.partition(end_mark)[2] if begin else "\n"
    path.write_text(
        f"{before.rstrip()}\n\n{begin_mark}\n{text.rstrip()}\n{end_mark}{after}", "utf-8"
    )
