"""One target under atheris, in a process of its own: ``python -m tests.fuzz`` starts it.

``python -m tests.fuzz.long TARGET CORPUS [options of libFuzzer]``. Ends with libFuzzer's own code: 0, or 77 for a
finding, which it writes to a file.
"""

import sys
import tempfile
from pathlib import Path
from typing import Final

import atheris

INSTRUMENTED: Final = [
    "agent",
    "fleet",
    "protos",
    "tests.fuzz",
    "tuf",
    "securesystemslib",
    "packaging",
]

with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.bed import all_targets


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    name, arguments = sys.argv[1], sys.argv[2:]
    with (
        tempfile.TemporaryDirectory(prefix="muster-fuzz-") as folder,
        all_targets(Path(folder)) as targets,
    ):
        feed = targets[name].feed
        atheris.Setup([sys.argv[0], *arguments], feed)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
