"""Counters of the application's own: what it noticed about an answer, compared by the fleet like any other metric.

Over REST ``POST /v2/models/NAME/count`` with ``{"counter": "rescans", "amount": 1, "id": "r-17"}``, over gRPC
``muster.oip.FeedbackService/Count``.

Rules kept here:

- A count belongs to the version that answered the request it is about, in the role it had then; without an id to the
  version that is active now. A count of an answer that is not remembered is refused: given to another version it would
  speak for the wrong one.
- A model has a bounded number of names; what does not fit is refused and said so, never counted under another name.
- A model that is not on this device is refused.
"""

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.runtime.errors import (
    InputContractError,
    RequestError,
    UnknownRequestError,
    UnknownServableError,
)
from agent.runtime.registry import Registry
from agent.serving.errors import OverloadError
from agent.serving.feedback import FeedbackLog, Version
from protos import feedback_pb2

__all__ = ["CountLimits", "CountLog", "CountingDesk", "Said"]

MAX_BODY_BYTES: Final = 4 * 1024
_COUNTER: Final = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True, slots=True)
class CountLimits:
    """Bounds of what is counted."""

    max_names: int = 16
    """Of one model, for as long as the process lasts, so that no series comes and goes."""
    max_amount: int = 1_000_000_000
    """Of one call."""
    max_total: int = 2**53
    """Of one counter in one window."""
    max_models: int = 64
    """Whose names are remembered; the oldest are forgotten first."""
    max_versions: int = 64
    """With counts that nobody has drained."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an application counts."""

    counter: str
    amount: int = 1
    request_id: str = ""


class CountLog:
    """What was counted since the last drain; safe for threads."""

    def __init__(self, limits: CountLimits | None = None) -> None:
        self.limits = limits or CountLimits()
        self._lock = threading.Lock()
        self._names: dict[str, set[str]] = {}
        self._counts: dict[Version, dict[str, int]] = {}

    def add(self, version: Version, counter: str, amount: int) -> None:
        """Count ``amount`` for a version.

        Raises:
            OverloadError: the model has as many counters as it may have.
        """
        with self._lock:
            self._admit(version.model, counter)
            counts = self._counts.get(version)
            if counts is None:
                while len(self._counts) >= self.limits.max_versions:
                    del self._counts[next(iter(self._counts))]
                counts = self._counts[version] = {}
            counts[counter] = min(counts.get(counter, 0) + amount, self.limits.max_total)

    def drain(self) -> Mapping[Version, Mapping[str, int]]:
        """Everything counted since the last drain."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return counts

    def _admit(self, model: str, counter: str) -> None:
        names = self._names.get(model)
        if names is None:
            while len(self._names) >= self.limits.max_models:
                del self._names[next(iter(self._names))]
            names = self._names[model] = set()
        if counter in names:
            return
        if len(names) >= self.limits.max_names:
            raise OverloadError(
                f"model {model!r} has {len(names)} counters and may have no more, so {counter!r} is not counted; "
                f"use one of {', '.join(sorted(names))}"
            )
        names.add(counter)


class CountingDesk:
    """Takes counts over both transports. One in a process."""

    def __init__(
        self, registry: Registry, answers: FeedbackLog, log: CountLog | None = None
    ) -> None:
        """``answers`` remembers which version answered a request."""
        self._registry = registry
        self._answers = answers
        self.log = log or CountLog()

    def count(self, model: str, said: Said) -> Version:
        """Count, and say for which version.

        Raises:
            RequestError: there is no such model, no such answer is remembered, or the counter is none.
        """
        _check(said, self.log.limits)
        if not self._registry.versions(model):
            raise UnknownServableError(f"there is no model {model!r} on this device")
        version = self._version(model, said.request_id)
        self.log.add(version, said.counter, said.amount)
        return version

    def message(self, request: feedback_pb2.CountRequest) -> feedback_pb2.CountResponse:
        """The answer to the gRPC method. Raises RequestError like ``count``."""
        said = Said(request.counter, request.amount or 1, request.request_id)
        self.count(request.model_name, said)
        return feedback_pb2.CountResponse()

    def rest(self, model: str, body: bytes) -> tuple[int, bytes]:
        """Status and JSON body of the answer to ``POST /v2/models/MODEL/count``."""
        try:
            version = self.count(model, _said_in(body))
        except UnknownServableError as error:
            return 404, _error(error)
        except InputContractError as error:
            return 400, _error(error)
        except RequestError as error:
            return 503, _error(error)
        return 200, json.dumps({"model_version": version.version}).encode()

    def _version(self, model: str, request_id: str) -> Version:
        if request_id:
            version = self._answers.answered_by(model, request_id)
            if version is None:
                raise UnknownRequestError(
                    f"no answer of model {model!r} to a request with the id {request_id[:80]!r} is remembered; "
                    f"count sooner, or without an id for the version that is active"
                )
            return version
        with self._registry.acquire(model) as handle:
            servable = handle.servable
            manifest = servable.manifest
            return Version(model, manifest.version, servable.sha256, servable.counters.role)


def _check(said: Said, limits: CountLimits) -> None:
    if not _COUNTER.fullmatch(said.counter):
        raise InputContractError(
            f"counter {said.counter[:80]!r} is no name: use a to z, 0 to 9 and _, at most 40 of them"
        )
    if not 1 <= said.amount <= limits.max_amount:
        raise InputContractError(f"amount must be from 1 to {limits.max_amount}, got {said.amount}")


def _said_in(body: bytes) -> Said:
    if len(body) > MAX_BODY_BYTES:
        raise InputContractError(f"the body has {len(body)} bytes, at most {MAX_BODY_BYTES} fit")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputContractError(f"the body is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise InputContractError('the body must be an object like {"counter": "rescans"}')
    unknown = sorted(set(said) - {"counter", "amount", "id"})
    if unknown:
        raise InputContractError(f"{unknown[0]!r} is not a key; known are counter, amount, id")
    counter, amount, request_id = said.get("counter"), said.get("amount", 1), said.get("id", "")
    if not isinstance(counter, str):
        raise InputContractError("counter is missing: give the name of what is counted")
    if isinstance(amount, bool) or not isinstance(amount, int):
        raise InputContractError(f"amount must be a whole number, got {amount!r}")
    if not isinstance(request_id, str):
        raise InputContractError(f"id must be text, got {request_id!r}")
    return Said(counter, amount or 1, request_id)


def _error(error: Exception) -> bytes:
    return json.dumps({"error": str(error)}).encode()
