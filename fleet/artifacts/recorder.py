"""The child that answers golden inputs: ``python -m fleet.artifacts.recorder FOLDER``, cases as JSON on stdin.

Rules kept here: like a trial it first takes away from itself what a model could misuse; it prints one
line of JSON, ``{"cases": ...}`` (exit code 0) or ``{"error": ...}`` (exit code 3).
"""

import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent.bundle import GoldenTensor
from agent.bundle.folder import read_bundle
from agent.errors import AgentError
from agent.runtime.confine import confine_trial
from agent.runtime.providers import DEFAULT_PROVIDERS
from agent.runtime.sandbox import die_with_parent, leave_network, limit_cpu, lock_down

__all__ = ["main"]

CPU_S: Final = 300
EXIT_REFUSED: Final = 3


def main(folder: Path) -> int:
    """Run every case on stdin. Returns the exit code."""
    cases = json.load(sys.stdin)
    die_with_parent()
    lock_down()
    limit_cpu(CPU_S)
    confine_trial(folder, DEFAULT_PROVIDERS, network_left=leave_network())
    try:
        answer: Mapping[str, Any] = {"cases": _answers(folder, cases)}
    except (AgentError, MemoryError) as error:
        answer = {"error": str(error) or "the model took more memory than there is"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return EXIT_REFUSED if "error" in answer else 0


def _answers(folder: Path, cases: list[Any]) -> list[dict[str, Any]]:
    from agent.runtime.dtypes import dtype_of, to_raw
    from agent.runtime.golden import load_tensor
    from agent.runtime.pipeline import Pipeline

    manifest, _ = read_bundle(folder)
    pipeline = Pipeline.load(folder, manifest)
    answers = []
    for case in cases:
        inputs = {
            name: load_tensor(folder, GoldenTensor(file, dtype, tuple(shape)))
            for name, file, dtype, shape in case
        }
        answers.append(
            {
                name: (dtype_of(array), list(array.shape), base64.b64encode(to_raw(array)).decode())
                for name, array in pipeline.run(inputs).items()
            }
        )
    return answers


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
