"""The Open Inference Protocol without a transport: what each question is answered, and how it fails.

Rules kept here:

- Both front ends ask here, so that they cannot disagree: one lease, one check of the contract, one
  set of counters, one wording.
- What is beside the active version takes nothing from a request: its answer is whole before a shadow is told of it.
- Broken inputs are refused and counted apart from failures. Broken or non-finite outputs are
  counted and answered.
- Which versions run is the fleet's decision: loading and unloading over the protocol is refused.
- What the protocol's clients may ask for and this server does not do (sequences, shared memory,
  classification) is refused, never ignored.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from agent import __version__
from agent.bundle import Manifest
from agent.runtime.contract import check_inputs, check_outputs
from agent.runtime.dtypes import Array
from agent.runtime.errors import (
    InferenceError,
    InputContractError,
    NotReadyError,
    RequestError,
    UnknownRequestError,
    UnknownServableError,
)
from agent.runtime.registry import Registry
from agent.runtime.servable import ANSWERING, Handle, ServableState
from agent.serving.counting import CountingDesk
from agent.serving.errors import CallerGoneError, FleetDecidesError, OverloadError
from agent.serving.feedback import FeedbackDesk
from agent.serving.shadow import Answered, ShadowRunner
from agent.serving.watchdog import RunWatchdog
from agent.serving.windows import drained_windows

__all__ = [
    "EXTENSIONS",
    "MAX_INPUTS",
    "PLATFORM",
    "SERVER_NAME",
    "Answer",
    "Fault",
    "IndexEntry",
    "InferenceProtocol",
    "Parameter",
    "Question",
    "fault_of",
    "refuse_tensor_parameters",
]

SERVER_NAME: Final = "muster"
PLATFORM: Final = "onnxruntime_onnx"
EXTENSIONS: Final = ("binary_tensor_data", "model_repository", "parameters")
MAX_INPUTS: Final = 256
_STATES: Final = {
    ServableState.ACTIVE: ("READY", ""),
    ServableState.PREVIOUS: ("READY", "not active: answers only requests that name its version"),
    ServableState.CANDIDATE: ("UNAVAILABLE", "loaded, not active yet"),
    ServableState.ARM: (
        "READY",
        "answers its share of the requests, and those that name its version",
    ),
    ServableState.SHADOW: ("UNAVAILABLE", "gets copies of requests, answers nobody"),
    ServableState.STANDBY: ("UNAVAILABLE", "loaded, ready to take over"),
    ServableState.RETIRED: ("UNAVAILABLE", "being unloaded"),
}
_UNSUPPORTED: Final = ("classification", "shared_memory_region")
_log = logging.getLogger(__name__)

Parameter = bool | int | float | str
T = TypeVar("T")


class Fault(Enum):
    """Why a question has no answer. Each front end has its own code for each."""

    NOT_FOUND = "no such model or version"
    UNAVAILABLE = "loaded, not answering"
    INVALID_ARGUMENT = "the request breaks the contract or the protocol"
    DEADLINE_EXCEEDED = "the run took too long"
    PERMISSION_DENIED = "not for applications to decide"
    RESOURCE_EXHAUSTED = "too much at once"
    INTERNAL = "the model failed"


_FAULTS: Final[Mapping[type[Exception], Fault]] = {
    UnknownServableError: Fault.NOT_FOUND,
    UnknownRequestError: Fault.NOT_FOUND,
    NotReadyError: Fault.UNAVAILABLE,
    InputContractError: Fault.INVALID_ARGUMENT,
    FleetDecidesError: Fault.PERMISSION_DENIED,
    OverloadError: Fault.RESOURCE_EXHAUSTED,
    CallerGoneError: Fault.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A request to run a model, as both front ends understand it.

    ``decode`` makes the inputs' arrays and raises ``InputContractError``; ``encode`` makes the
    front end's answer. Both run under the lease, so that what they take is part of the latency.
    """

    model: str
    version: str
    decode: Callable[[], dict[str, Array]]
    encode: Callable[["Answer"], T]
    outputs: Sequence[str] = ()
    """Those that are asked for; none named is all."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    request_id: str = ""
    """The caller's name for the request: feedback about its answer refers to it."""
    remaining_s: Callable[[], float | None] = lambda: None
    """How long the caller still waits; None: for ever."""
    waits: bool = True
    """Wait on this thread while the model makes room for its next version; an event loop awaits
    ``wait_held`` instead."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, with the names that were asked for in order."""

    manifest: Manifest
    names: Sequence[str]
    arrays: Mapping[str, Array]
    servable_sha256: str


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One loaded version."""

    name: str
    version: str
    state: str
    reason: str


class InferenceProtocol:
    """Answers from a registry. Safe for threads."""

    def __init__(self, registry: Registry, watchdog: RunWatchdog) -> None:
        self._registry = registry
        self._watchdog = watchdog
        self.feedback = FeedbackDesk(registry)
        """Takes the truth about what was answered."""
        self.counting = CountingDesk(registry, self.feedback.log)
        """Takes what applications count."""
        self._shadows = ShadowRunner(registry, watchdog)

    def infer(self, question: Question[T]) -> T:
        """Run a model on one request.

        Raises:
            RequestError: the caller's fault. InferenceError: the model's. Anything else is ours;
            ``fault_of`` has a code for each.
        """
        began_s = time.perf_counter()
        if question.waits:
            handle = self._registry.acquire_waiting(
                question.model, question.version, question.remaining_s(), question
            )
        else:
            handle = self._registry.acquire(question.model, question.version, question)
        # Only now: what a request waited for a version is not that version's latency.
        began_s = time.perf_counter()
        with handle:
            return self._infer(handle, question, began_s)

    def _infer(self, handle: Handle, question: Question[T], began_s: float) -> T:
        """Counts everything while the lease is held: the counters of a version end with its last
        lease."""
        servable = handle.servable
        manifest, counters = servable.manifest, servable.counters
        try:
            names = _requested(question.outputs, manifest)
            remaining_s = _remaining(question)
            inputs = question.decode()
            check_inputs(manifest.inputs, inputs)
        except InputContractError:
            counters.refused()
            raise
        if remaining_s is not None and remaining_s <= 0:
            # It waited too long for a thread. Nobody listens any more, so nothing is run or counted.
            raise CallerGoneError("the caller's time is over")
        try:
            with self._watchdog.watch(
                remaining_s, counters.objective_s, servable.sha256
            ) as options:
                outputs = handle.pipeline.run(inputs, options)
        except InferenceError as error:
            counters.failed(error.kind)
            raise
        except Exception:
            counters.failed("unexpected")
            raise
        findings = check_outputs(manifest.outputs, outputs)
        observer = servable.observer
        seen = None if observer is None else observer.look(outputs)
        answer = question.encode(Answer(manifest, names, outputs, servable.sha256))
        if question.request_id:
            self.feedback.answered(servable, counters.role, question.request_id, outputs)
        counters.answered(
            time.perf_counter() - began_s,
            seen,
            violations=bool(findings.violations),
            non_finite=bool(findings.non_finite),
        )
        shadow = servable.shadow
        if shadow is not None:
            self._shadows.offer(shadow, Answered(servable, inputs, outputs), question.request_id)
        return answer

    def drained(self) -> list[dict[str, Any]]:
        """What every version counted since the last call, for the supervisor."""
        stuck = self._watchdog.overdue()
        return drained_windows(self._registry, self.feedback.log, self.counting.log, stuck)

    async def wait_held(self, model: str) -> None:
        """While memory allows ``model`` one version only and the next is being loaded: wait for it, a
        bounded time. ``infer`` waits by itself where the question ``waits``; this is for fronts on an event
        loop, before they ask.

        Raises:
            NotReadyError: too many requests wait already.
        """
        if not self._registry.is_held(model):
            return
        with self._registry.held(model) as held:
            if held is not None:
                ended, left_s = held
                # Not wait_for: that would cancel the future of everybody else who waits.
                await asyncio.wait({asyncio.wrap_future(ended)}, timeout=left_s)

    def server_ready(self) -> bool:
        """Every model that is loaded has an active version."""
        return all(self.model_ready(name) for name in self._registry.names())

    def model_ready(self, name: str, version: str = "") -> bool:
        """The model (version) would answer now; an unknown one would not."""
        try:
            with self._registry.acquire(name, version):
                return True
        except RequestError:  # unknown or not active: the answer to the question
            return False

    def server_metadata(self) -> tuple[str, str, Sequence[str]]:
        """Name, version and the extensions of the protocol that are spoken."""
        return SERVER_NAME, __version__, EXTENSIONS

    def model_metadata(self, name: str, version: str = "") -> tuple[Manifest, Sequence[str]]:
        """The manifest of a model (version), and all versions of the model that answer.

        Raises:
            RequestError: there is none, or it does not answer.
        """
        with self._registry.acquire(name, version) as handle:
            manifest = handle.servable.manifest
        versions = [
            servable.manifest.version
            for servable in self._registry.versions(name)
            if servable.state in ANSWERING
        ]
        return manifest, versions

    def repository_index(self, *, ready: bool) -> Sequence[IndexEntry]:
        """Every loaded version and whether it answers; with ``ready`` those that do."""
        entries = []
        for name in self._registry.names():
            for servable in self._registry.versions(name):
                state, reason = _STATES[servable.state]
                if state == "READY" or not ready:
                    entries.append(IndexEntry(name, servable.manifest.version, state, reason))
        return entries

    def refuse_change(self) -> None:
        """Load and unload: not for applications.

        Raises:
            FleetDecidesError: always.
        """
        raise FleetDecidesError(
            "the fleet decides which bundles run on this device; change it with a rollout"
        )


def fault_of(error: Exception, model: str) -> tuple[Fault, str]:
    """Which fault an exception is, and what the caller is told."""
    fault = _FAULTS.get(type(error))
    if fault is not None:
        return fault, str(error)
    if isinstance(error, InferenceError):
        late = error.kind == "timeout"
        return (
            Fault.DEADLINE_EXCEEDED if late else Fault.INTERNAL,
            f"model {model!r}: {error}",
        )
    # One bad request must not look like a lost server.
    _log.error("model %r: unexpected error", model, exc_info=error)
    return Fault.INTERNAL, f"model {model!r}: unexpected {type(error).__name__}"


def refuse_tensor_parameters(kind: str, name: str, parameters: Mapping[str, object]) -> None:
    """Refuse what a tensor's parameters ask for and is not done here.

    Raises:
        InputContractError: naming the tensor and the parameter.
    """
    for parameter in _UNSUPPORTED:
        if parameter in parameters:
            raise InputContractError(f"{kind} {name!r}: {parameter} is not supported")


def _requested(outputs: Sequence[str], manifest: Manifest) -> Sequence[str]:
    """Names of the outputs to answer, all of the contract's where none are asked for."""
    known = [spec.name for spec in manifest.outputs]
    if not outputs:
        return known
    for name in outputs:
        if name not in known:
            raise InputContractError(f"there is no output {name!r}; the model has {known}")
    if len(set(outputs)) < len(outputs):
        raise InputContractError(f"an output is asked for twice: {list(outputs)}")
    return outputs


def _remaining(question: Question[T]) -> float | None:
    """How long the caller waits: its transport's deadline, or the protocol's ``timeout`` parameter
    (microseconds) where that is sooner. Refuses sequences on the way."""
    remaining_s = question.remaining_s()
    parameters = question.parameters
    if not parameters:
        return remaining_s
    if parameters.get("sequence_id"):
        raise InputContractError("sequence_id: sequences are not supported, each request is alone")
    timeout = parameters.get("timeout")
    if timeout is None or timeout == 0:
        return remaining_s
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise InputContractError(
            f"parameter 'timeout' must be a number of microseconds, got {timeout!r}"
        )
    limit_s = timeout / 1e6
    return limit_s if remaining_s is None else min(limit_s, remaining_s)
