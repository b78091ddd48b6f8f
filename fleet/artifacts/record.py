"""What a pipeline answers to golden inputs, asked in a child process (``fleet.artifacts.recorder``)."""

import base64
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agent.runtime.child import child_command, child_environment, describe_exit
from agent.runtime.dtypes import Array, from_raw
from agent.runtime.verdict import clean_text
from fleet.artifacts.errors import BuildRefusedError
from fleet.artifacts.golden import Golden

__all__ = ["record_outputs"]

RECORD_TIMEOUT_S: Final = 600.0


def record_outputs(folder: Path, cases: Sequence[Golden]) -> list[Mapping[str, Array]]:
    """The outputs of the bundle in ``folder`` for each case, by tensor name.

    Raises:
        BuildRefusedError: the pipeline cannot be loaded, failed, crashed or did not end.
    """
    asked = [
        [(name, tensor.file, tensor.dtype, tensor.shape) for name, tensor in case.inputs]
        for case in cases
    ]
    try:
        done = subprocess.run(
            child_command("fleet.artifacts.recorder", str(folder)),
            input=json.dumps(asked).encode(),
            capture_output=True,
            env=child_environment(),
            timeout=RECORD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildRefusedError(
            f"recording golden cases did not end within {RECORD_TIMEOUT_S:g} s; "
            f"the model may never finish a run"
        ) from error
    try:
        answer: Any = json.loads(done.stdout)
    except ValueError as error:
        said = clean_text(done.stderr.decode("utf-8", "replace")[-400:], 200)
        raise BuildRefusedError(
            f"the pipeline crashed while recording golden cases: {describe_exit(done.returncode)}"
            + (f"; it last said: {said}" if said else "")
        ) from error
    if "error" in answer:
        raise BuildRefusedError(f"recording golden cases failed: {answer['error']}")
    return [
        {
            name: from_raw(base64.b64decode(data), dtype, shape, name)
            for name, (dtype, shape, data) in outputs.items()
        }
        for outputs in answer["cases"]
    ]
