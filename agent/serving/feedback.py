"""Ground truth from applications: what a request should have been answered, compared with what it was.

Over REST ``POST /v2/models/NAME/feedback`` with ``{"id": ..., "label": ...}`` or ``{"id": ..., "value": ...}``, over
gRPC ``muster.oip.FeedbackService/Feedback``.

Rules kept here:

- Only requests that carry an id are remembered, a bounded number for a bounded time, and of each only what it was
  predicted: a label or a number a row, never the inputs.
- Which output is judged: the one that the manifest's parameter ``feedback_output`` names, else the first one with
  labels, else the first one that has one number or text a row. A model without such an output takes no feedback.
- Which version answered a request is remembered as well for those that cannot be judged: counts of an application's
  own refer to it (``agent.serving.counting``).
- Each row is judged once, and counted for the version that answered, whichever is active by then. Feedback that no
  remembered answer belongs to is counted for the version that is active now.
"""

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import numpy as np

from agent.bundle import Manifest, TensorSpec
from agent.runtime.dtypes import Array
from agent.runtime.errors import InputContractError, RequestError, UnknownServableError
from agent.runtime.registry import Registry
from agent.runtime.servable import Servable
from protos import feedback_pb2

__all__ = [
    "FEEDBACK_SERVICE",
    "FeedbackCounts",
    "FeedbackDesk",
    "FeedbackLimits",
    "FeedbackLog",
    "Outcome",
    "Truth",
    "Version",
    "judged_output",
    "predictions_in",
]

FEEDBACK_SERVICE: Final = "muster.oip.FeedbackService"
MAX_BODY_BYTES: Final = 64 * 1024
MAX_KNOWN: Final = 64
"""Versions in their roles whose judged output is looked up."""
MAX_ID_CHARS: Final = 256
MAX_TEXT_CHARS: Final = 256

Prediction = str | float
"""A label, or a number."""


class Outcome(StrEnum):
    """What became of one feedback."""

    CORRECT = "correct"
    WRONG = "wrong"
    MEASURED = "measured"
    """A value: the absolute error was added up."""
    UNKNOWN = "unknown"
    """No request with this id is remembered (any more), or the row was judged before."""
    LATE = "late"
    """The request is longer ago than feedback is waited for."""


@dataclass(frozen=True, slots=True)
class FeedbackLimits:
    """Bounds of what is remembered."""

    max_requests: int = 4096
    """The oldest are forgotten first."""
    max_age_s: float = 3600.0
    max_rows: int = 64
    """Of a batched request, the first; later ones cannot be judged."""
    max_versions: int = 64
    """With counts that nobody has drained."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What an application says: a label or a value for a row of a request."""

    request_id: str
    label: str | None = None
    value: float | None = None
    row: int = 0


@dataclass(slots=True)
class FeedbackCounts:
    """Of one version since the last drain."""

    feedback_count: int = 0
    feedback_correct: int = 0
    feedback_abs_error_sum: float = 0.0
    feedback_unknown: int = 0


@dataclass(frozen=True, slots=True)
class Version:
    """Whose answer it was, in which role ("" or that of an arm)."""

    model: str
    version: str
    manifest_sha256: str
    role: str = ""


@dataclass(slots=True)
class _Answered:
    version: Version
    at_s: float
    rows: dict[int, Prediction] = field(default_factory=dict)


class FeedbackLog:
    """What was answered and how it was judged; safe for threads. ``clock``: monotonic seconds."""

    def __init__(
        self, limits: FeedbackLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits or FeedbackLimits()
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[str, str], _Answered] = OrderedDict()
        self._counts: dict[Version, FeedbackCounts] = {}

    def remember(
        self, version: Version, request_id: str, predictions: Sequence[Prediction]
    ) -> None:
        """A request was answered. An id that is used again means the newer request. ``predictions`` may be empty:
        then there is nothing to judge."""
        if not request_id or len(request_id) > MAX_ID_CHARS:
            return
        rows = dict(enumerate(predictions[: self._limits.max_rows]))
        key = (version.model, request_id)
        answered = _Answered(version, self._clock(), rows)
        with self._lock:
            answers = self._answers
            if key in answers:
                del answers[key]
            answers[key] = answered
            if len(answers) > self._limits.max_requests:
                answers.popitem(last=False)

    def answered_by(self, model: str, request_id: str) -> Version | None:
        """Which version of the model answered the request; None when that is not remembered (any more)."""
        with self._lock:
            answer = self._answers.get((model, request_id))
            if answer is None or self._clock() - answer.at_s > self._limits.max_age_s:
                return None
            return answer.version

    def judge(self, active: Version, truth: Truth) -> Outcome:
        """Compare an answer of the model with the truth. ``active``: who is charged with feedback for nobody.

        Raises:
            InputContractError: a label for a number or the other way round.
        """
        key = (active.model, truth.request_id)
        with self._lock:
            answer = self._answers.get(key)
            if answer is not None and self._clock() - answer.at_s > self._limits.max_age_s:
                del self._answers[key]
                self._of(active).feedback_unknown += 1
                return Outcome.LATE
            predicted = None if answer is None else answer.rows.get(truth.row)
            if answer is None or predicted is None:
                self._of(active).feedback_unknown += 1
                return Outcome.UNKNOWN
            outcome = self._compared(answer.version, predicted, truth)
            del answer.rows[truth.row]
            return outcome

    def _compared(self, version: Version, predicted: Prediction, truth: Truth) -> Outcome:
        if isinstance(predicted, str):
            if truth.label is None:
                raise InputContractError(
                    f"the request was answered with a label ({predicted!r}): give 'label'"
                )
            counts = self._of(version)
            counts.feedback_count += 1
            counts.feedback_correct += predicted == truth.label
            return Outcome.CORRECT if predicted == truth.label else Outcome.WRONG
        if truth.value is None:
            raise InputContractError("the request was answered with a number: give 'value'")
        counts = self._of(version)
        counts.feedback_count += 1
        # A prediction that is no number is as wrong as can be said without spoiling the sum.
        error = abs(predicted - truth.value)
        counts.feedback_correct += error == 0
        counts.feedback_abs_error_sum += error if math.isfinite(error) else abs(truth.value)
        return Outcome.MEASURED

    def drain(self) -> Mapping[Version, FeedbackCounts]:
        """Everything counted since the last drain."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return counts

    def _of(self, version: Version) -> FeedbackCounts:
        counts = self._counts.get(version)
        if counts is None:
            while len(self._counts) >= self._limits.max_versions:
                del self._counts[next(iter(self._counts))]
            counts = self._counts[version] = FeedbackCounts()
        return counts


def judged_output(manifest: Manifest) -> TensorSpec | None:
    """The output that feedback is about; None: this model takes none."""
    named = manifest.parameters.get("feedback_output")
    if named is not None:
        return next((spec for spec in manifest.outputs if spec.name == named), None)
    labelled = next((spec for spec in manifest.outputs if spec.labels), None)
    if labelled is not None:
        return labelled
    return next((spec for spec in manifest.outputs if _one_a_row(spec.shape)), None)


def _one_a_row(shape: Sequence[int]) -> bool:
    return all(size == 1 for size in shape[1:])


def predictions_in(spec: TensorSpec, array: Array) -> list[Prediction]:
    """What the output says, row by row: the text, the label with the highest score or of the index, or the number.

    ``array`` has the batch as its first axis. Empty where a row holds several numbers and no labels name them.
    """
    size = array.size
    if size == 0:
        return []
    if array.ndim and array.shape[0] == 1 and spec.dtype != "BYTES":
        # Nearly every request has one row: without making arrays of it.
        if size == 1:
            return [_named(spec.labels, array.item())]
        if size == len(spec.labels):
            return [spec.labels[int(array.argmax())]]
        return []
    rows = array.reshape(array.shape[0] if array.ndim else 1, -1)
    labels = spec.labels
    if spec.dtype == "BYTES":
        return [_text(value) for value in rows[:, 0].tolist()]
    if labels and rows.shape[1] == len(labels) and rows.shape[1] > 1:
        return [labels[index] for index in np.argmax(rows, axis=1).tolist()]
    if rows.shape[1] != 1:
        return []
    return [_named(labels, number) for number in rows[:, 0].tolist()]


def _named(labels: Sequence[str], number: float) -> Prediction:
    """The label of an index; without labels the number itself, outside of them what stands there."""
    if not labels:
        return float(number)
    return labels[int(number)] if number in range(len(labels)) else str(number)[:MAX_TEXT_CHARS]


def _text(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text[:MAX_TEXT_CHARS]


class FeedbackDesk:
    """The log with both front ends. One in a process."""

    def __init__(self, registry: Registry, log: FeedbackLog | None = None) -> None:
        self._registry = registry
        self._log = log or FeedbackLog()
        self._known: dict[tuple[str, str], tuple[Version, TensorSpec | None]] = {}

    @property
    def log(self) -> FeedbackLog:
        return self._log

    def answered(
        self, servable: Servable, role: str, question: str, outputs: Mapping[str, Array]
    ) -> None:
        """The request with the id ``question`` was answered by this version in this role."""
        version, spec = self._judged(servable, role)
        judged = spec is not None and spec.name in outputs
        predictions = predictions_in(spec, outputs[spec.name]) if spec and judged else []
        self._log.remember(version, question, predictions)

    def _judged(self, servable: Servable, role: str) -> tuple[Version, TensorSpec | None]:
        """Looked up, because every answer with an id asks."""
        key = (servable.sha256, role)
        found = self._known.get(key)
        if found is None:
            manifest = servable.manifest
            version = Version(manifest.model, manifest.version, servable.sha256, role)
            found = version, judged_output(manifest)
            while len(self._known) >= MAX_KNOWN:
                self._known.pop(next(iter(self._known), key), None)
            self._known[key] = found
        return found

    def feedback(self, model: str, truth: Truth) -> Outcome:
        """Take the truth about a request of a model.

        Raises:
            RequestError: there is no such model, it takes no feedback, or the truth is of the wrong kind.
        """
        with self._registry.acquire(model) as handle:
            manifest, sha256 = handle.servable.manifest, handle.servable.sha256
        if judged_output(manifest) is None:
            raise InputContractError(
                f"model {model!r} takes no feedback: no output has labels or one number a row; "
                f"name one in the bundle's parameter 'feedback_output'"
            )
        return self._log.judge(Version(manifest.model, manifest.version, sha256), truth)

    def rest(self, model: str, body: bytes) -> tuple[int, bytes]:
        """Status and JSON body of the answer to ``POST /v2/models/MODEL/feedback``."""
        try:
            outcome = self.feedback(model, _truth_in(body))
        except UnknownServableError as error:
            return 404, _json({"error": str(error)})
        except InputContractError as error:
            return 400, _json({"error": str(error)})
        except RequestError as error:
            return 503, _json({"error": str(error)})
        return 200, _json({"outcome": outcome})

    def message(self, request: feedback_pb2.FeedbackRequest) -> feedback_pb2.FeedbackResponse:
        """The answer to the gRPC method. Raises RequestError like ``feedback``."""
        outcome = self.feedback(request.model_name, _truth_of(request))
        return feedback_pb2.FeedbackResponse(outcome=outcome)


def _truth_in(body: bytes) -> Truth:
    if len(body) > MAX_BODY_BYTES:
        raise InputContractError(f"the body has {len(body)} bytes, at most {MAX_BODY_BYTES} fit")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputContractError(f"the body is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise InputContractError('the body must be an object like {"id": "r-17", "label": "cat"}')
    unknown = sorted(set(said) - {"id", "label", "value", "row"})
    if unknown:
        raise InputContractError(f"{unknown[0]!r} is not a key; known are id, label, value, row")
    label, value, row = said.get("label"), said.get("value"), said.get("row", 0)
    if label is not None and not isinstance(label, str):
        raise InputContractError(f"label must be text, got {label!r}")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputContractError(f"value must be a number, got {value!r}")
    if isinstance(row, bool) or not isinstance(row, int):
        raise InputContractError(f"row must be a whole number, got {row!r}")
    return _checked(Truth(said.get("id", ""), label, _float(value), row))


def _float(value: int | float | None) -> float | None:
    try:
        return None if value is None else float(value)
    except OverflowError:
        return math.inf


def _truth_of(request: feedback_pb2.FeedbackRequest) -> Truth:
    kind = request.WhichOneof("truth")
    return _checked(
        Truth(
            request.request_id,
            request.label if kind == "label" else None,
            request.value if kind == "value" else None,
            request.row,
        )
    )


def _checked(truth: Truth) -> Truth:
    if not isinstance(truth.request_id, str) or not truth.request_id:
        raise InputContractError("id is missing: give the id of the request that was answered")
    if (truth.label is None) == (truth.value is None):
        raise InputContractError("give either 'label' or 'value'")
    if truth.value is not None and not math.isfinite(truth.value):
        raise InputContractError(f"value must be a finite number, got {truth.value}")
    return truth


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()
