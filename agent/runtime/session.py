"""One model file as an onnxruntime session, made the same way everywhere.

Rules kept here:

- Models are loaded by path from a regular file with one link: creating a session from ``bytes``
  holds the interpreter's lock, which would stall requests during a swap.
- Providers are the ones asked for, in their order; falling back to another is switched off and the
  result is checked. Only the ONNX format.
- Threads do not spin: a device has other work. A bundle gets the threads it asks for, as far as the
  device has cores for them.
- A saved form has been optimised already and its weights stay mapped from the file: nothing is
  optimised or packed again.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.bundle import check_name
from agent.runtime.engine import ort, ort_errors
from agent.runtime.errors import ModelLoadError
from agent.runtime.providers import CPU, DEFAULT_PROVIDERS
from agent.runtime.verdict import clean_text

__all__ = ["ORT_ERRORS", "EngineOptions", "open_session", "save_session", "threads_of"]

MIN_EXTERNAL_BYTES: Final = 4096
"""Smaller weights stay in the saved graph itself: a page for each would waste memory."""
# What onnxruntime raises. It has no common root, and it also raises plain RuntimeError and
# ValueError.
ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotFound,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the device says about running models. ``max_threads`` 0: as many as there are cores."""

    providers: tuple[str, ...] = DEFAULT_PROVIDERS
    max_threads: int = 0


def threads_of(asked: int, engine: EngineOptions) -> int:
    """Threads of one run for a bundle that asks for ``asked``: at least 1, at most the device's."""
    cores = engine.max_threads or len(os.sched_getaffinity(0))
    return max(1, min(asked, cores))


def open_session(
    path: Path, where: str, threads: int, engine: EngineOptions, *, saved: bool = False
) -> Any:
    """A session of the model in ``path``; ``where`` begins every message. ``saved``: it is a saved
    form.

    Raises:
        ModelLoadError: it cannot be loaded, or would run on other providers than asked for.
    """
    _check_file(path, where)
    options = _options(threads, engine)
    if saved:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    return _create(path, where, options, engine)


def save_session(
    path: Path, where: str, threads: int, engine: EngineOptions, target: Path
) -> tuple[Path, Path]:
    """Write the optimised form of a model to ``target``, its weights into a file beside it.

    Returns both; the second is not there when no weight is large enough to be kept apart.

    Raises:
        ModelLoadError: it cannot be loaded or written.
    """
    _check_file(path, where)
    weights = target.with_suffix(".weights")
    options = _options(threads, engine)
    options.optimized_model_filepath = str(target)
    for name, value in (
        ("session.optimized_model_external_initializers_file_name", weights.name),
        (
            "session.optimized_model_external_initializers_min_size_in_bytes",
            str(MIN_EXTERNAL_BYTES),
        ),
        ("session.disable_prepacking", "1"),
    ):
        options.add_session_config_entry(name, value)
    _create(path, where, options, engine)
    return target, weights


def _check_file(path: Path, where: str) -> None:
    check_name(path.name)
    try:
        status = path.lstat()
    except OSError as error:
        raise ModelLoadError(f"{where} cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise ModelLoadError(f"{where} is not a regular file with one link")


def _options(threads: int, engine: EngineOptions) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if CPU not in engine.providers:
        # onnxruntime would quietly run on the CPU whatever the others do not take.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _create(path: Path, where: str, options: Any, engine: EngineOptions) -> Any:
    wanted = list(engine.providers)
    missing = [name for name in wanted if name not in ort.get_available_providers()]
    if missing:
        raise ModelLoadError(f"{where} cannot be loaded: {missing[0]} is not available here")
    try:
        session = ort.InferenceSession(str(path), options, providers=wanted)
    except ORT_ERRORS as error:
        raise ModelLoadError(f"{where} cannot be loaded: {clean_text(str(error))}") from error
    session.disable_fallback()
    # The CPU's is always there at the end, taking nothing when it was not asked for (see above).
    got = [name for name in session.get_providers() if name != CPU or CPU in wanted]
    if got != wanted:
        raise ModelLoadError(f"{where} runs on {got}, not on {wanted}")
    return session
