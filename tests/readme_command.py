"""Prints one of the README's two commands, so that CI runs what a newcomer runs.

``python -m tests.readme_command test``

A command is the one line of the fenced block that follows ``<!-- command: NAME -->`` in README.md.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def command(name: str, text: str | None = None) -> str:
    """The command marked ``name``. Raises LookupError when the README has none or more than one line."""
    text = README.read_text(encoding="utf-8") if text is None else text
    found = re.search(
        rf"<!-- command: {re.escape(name)} -->\n```[a-z]*\n(.*?)\n```", text, re.DOTALL
    )
    if found is None:
        raise LookupError(f"README.md has no command marked {name!r}")
    line = found.group(1)
    if "\n" in line:
        raise LookupError(f"the command marked {name!r} in README.md is longer than one line")
    return line


if __name__ == "__main__":
    sys.stdout.write(command(sys.argv[1]) + "\n")
