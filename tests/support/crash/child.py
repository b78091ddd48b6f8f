"""The child under the recorder: ``record PLAY FOLDER LOG`` or ``fail PLAY,PLAY FOLDER ERROR once|stays``.

``fail`` plays in this process over and over, with the first, the second ... operation failing, and prints one line for
each time something was wrong afterwards; at the end of each play its name, the number of its operations, and of those
whose failure was told.
"""

import logging
import shutil
import sys
from pathlib import Path

from agent.errors import AgentError
from tests.support.crash import recorder
from tests.support.crash.plays import PLAYS

MOST_CALLS = 2000


def record(play: str, folder: Path, log: Path) -> None:
    recorder.begin(folder, log)
    PLAYS[play].run(folder, recorder.notes)


def fail(play: str, folder: Path, error: int, *, stays: bool) -> tuple[int, int]:
    """How many operations the play has, and how many failures the store told of."""
    told = 0
    for at in range(1, MOST_CALLS):
        shutil.rmtree(folder)
        folder.mkdir()
        said: list[str] = []
        recorder.failing(at, error, stays=stays)
        try:
            PLAYS[play].run(folder, said.append)
        except AgentError:
            told += 1  # what a store may say of a failing disk
        except Exception as other:  # noqa: BLE001 -- whatever else it says is what is looked for
            print(f"wrong at {play} {at}: {type(other).__name__}: {other}")
        reached = recorder.calls() >= at
        recorder.failing(0, 0, stays=False)
        if not reached:
            return at - 1, told
        try:
            PLAYS[play].check(folder, said)
            PLAYS[play].run(folder, lambda _: None)
        except Exception as wrong:  # noqa: BLE001 -- the same
            print(f"wrong after {play} {at}: {type(wrong).__name__}: {wrong}")
    raise AssertionError("the play has no end")


def main(arguments: list[str]) -> None:
    logging.disable(logging.CRITICAL)
    command, play, folder = arguments[0], arguments[1], Path(arguments[2])
    if command == "record":
        record(play, folder, Path(arguments[3]))
    else:
        recorder.begin(folder, None)
        for one in play.split(","):
            print(one, *fail(one, folder, int(arguments[3]), stays=arguments[4] == "stays"))


if __name__ == "__main__":
    main(sys.argv[1:])
