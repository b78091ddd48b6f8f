"""Trust for a thousand devices: the agent's own TrustRefresher, asked once for each distinct question.

A refresh is a function of the state, of what is offered and of the time, and offered metadata is
named by digest from the timestamp down. So the answer is remembered for (state, pack), and without
a pack for (state, next root, timestamp): those two files every device fetches itself, over its own
connection. What is remembered is the refresher's own result or its own refusal; nothing is verified
here, and nothing is accepted that the refresher has not accepted in this process. An answer is used
again for ``MEMORY_S`` at most, so that metadata that expires is noticed by then.
"""

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Final

from agent.ports import MetadataSource
from agent.trust import RefusedMetadataError, TrustState
from agent.trust.refresh import TrustRefresher
from agent.trust_keeper import TrustView
from agent.trust_view import read_view

__all__ = ["SharedRefresher", "SharedViews"]

MEMORY_S: Final = 30.0
MAX_REMEMBERED: Final = 64

_Answer = Future[TrustState]


class SharedRefresher(TrustRefresher):
    """The agent's refresher with a memory. Called from many worker threads at once."""

    def __init__(self, bootstrap_root: bytes) -> None:
        super().__init__(bootstrap_root)
        self._first_root = int(json.loads(bootstrap_root)["signed"]["version"])
        self._lock = threading.Lock()
        self._answers: OrderedDict[bytes, tuple[float, _Answer]] = OrderedDict()
        self.asked = 0
        self.verified = 0

    def refresh(
        self, state: TrustState, source: MetadataSource, pack: bytes | None, now_s: float
    ) -> TrustState:
        """As ``TrustRefresher.refresh``, with the same errors."""
        offered: dict[str, bytes | None] = {}
        if pack is None:
            for name in (f"{self._newest_root(state) + 1}.root.json", "timestamp.json"):
                offered[name] = source.get_metadata(name)
        key = _digest(state, pack, offered)
        answer, mine = self._answer(key)
        if mine:
            self._verify(key, answer, (state, _Prefetched(source, offered), pack, now_s))
        try:
            return answer.result()
        except RefusedMetadataError as error:
            # A copy for each device: one exception raised in many threads grows without end.
            refusal = type(error)(str(error))
            refusal.progress = error.progress
            raise refusal from None

    def _verify(
        self,
        key: bytes,
        answer: _Answer,
        question: tuple[TrustState, MetadataSource, bytes | None, float],
    ) -> None:
        self.verified += 1
        try:
            answer.set_result(super().refresh(*question))
        except BaseException as error:  # noqa: BLE001 (handed to everyone who waits for it)
            if not isinstance(error, RefusedMetadataError):
                with self._lock:  # an unreachable server is no answer: the next one asks again
                    self._answers.pop(key, None)
            answer.set_exception(error)

    def _answer(self, key: bytes) -> tuple[_Answer, bool]:
        """The answer to wait for, and whether the caller has to find it."""
        now = time.monotonic()
        with self._lock:
            self.asked += 1
            known = self._answers.get(key)
            if known is not None and now - known[0] < MEMORY_S:
                return known[1], False
            answer: _Answer = Future()
            self._answers[key] = (now, answer)
            self._answers.move_to_end(key)
            while len(self._answers) > MAX_REMEMBERED:
                self._answers.popitem(last=False)
            return answer, True

    def _newest_root(self, state: TrustState) -> int:
        roots = (name for name in state.files if name.endswith(".root.json"))
        return max((int(name.partition(".")[0]) for name in roots), default=self._first_root)


class SharedViews:
    """What verified states say, read once for each state. States of devices that agree are one object."""

    def __init__(self) -> None:
        self._views: OrderedDict[int, tuple[TrustState, TrustView]] = OrderedDict()

    def __call__(self, state: TrustState) -> TrustView:
        known = self._views.get(id(state))
        if known is not None:  # the state is kept beside its view, so its id is its own
            return known[1]
        view = read_view(state)
        self._views[id(state)] = (state, view)
        while len(self._views) > MAX_REMEMBERED:
            self._views.popitem(last=False)
        return view


class _Prefetched:
    """A metadata source of which some answers are here already."""

    def __init__(self, source: MetadataSource, answers: Mapping[str, bytes | None]) -> None:
        self._source = source
        self._answers = answers

    def get_metadata(self, name: str) -> bytes | None:
        if name in self._answers:
            return self._answers[name]
        return self._source.get_metadata(name)

    def get_target(self, path: str, sha256: str) -> bytes | None:
        return self._source.get_target(path, sha256)


def _digest(state: TrustState, pack: bytes | None, offered: Mapping[str, bytes | None]) -> bytes:
    """One digest over everything the answer depends on, each part with its length."""
    total = hashlib.sha256()
    parts = [repr((state.floor_s, sorted(state.floors.items()))).encode()]
    for name, content in sorted(state.files.items()):
        parts += [name.encode(), content]
    parts.append(b"no pack" if pack is None else b"pack" + pack)
    for name, answer in sorted(offered.items()):
        parts += [name.encode(), b"none" if answer is None else b"some" + answer]
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.digest()
