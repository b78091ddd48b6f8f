"""A model whose only version is being replaced: its requests wait, a bounded time and a bounded number."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.runtime.errors import NotReadyError, UnknownServableError
from agent.runtime.registry import Registry, RegistryLimits
from tests.support.onnx_models import MadeBundle, scale_bundle

X = np.ones((1, 4), np.float32)
LONG_S = 60.0


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry(RegistryLimits(max_waiting=2))
    yield made
    made.close()


@pytest.fixture
def bundles(tmp_path: Path, registry: Registry) -> tuple[MadeBundle, MadeBundle]:
    """Two versions; the first serves."""
    old = scale_bundle(tmp_path / "1", 2.0, "1")
    new = scale_bundle(tmp_path / "2", 3.0, "2")
    registry.load(old.path, old.sha256)
    registry.activate("scale", old.sha256)
    return old, new


class Asker(threading.Thread):
    """A request that waits, on its own thread."""

    def __init__(self, registry: Registry, wait_s: float | None = None, version: str = "") -> None:
        super().__init__(daemon=True)
        self._registry, self._wait_s, self._version = registry, wait_s, version
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            with self._registry.acquire_waiting("scale", self._version, self._wait_s) as handle:
                self.answer = float(handle.pipeline.run({"x": X})["y"][0, 0])
        except (NotReadyError, UnknownServableError) as error:
            self.answer = error

    def result(self) -> Any:
        self.join(LONG_S)
        return self.answer


def until_waiting(registry: Registry, count: int) -> None:
    """Until so many requests wait. (Nobody is told of that, so it is looked for.)"""
    deadline_s = time.monotonic() + LONG_S
    while registry.waiting < count:
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.001)


def test_requests_wait_for_the_next_version(
    registry: Registry, bundles: tuple[MadeBundle, MadeBundle]
) -> None:
    old, new = bundles
    registry.unload("scale", old.sha256, hold_s=LONG_S)
    assert registry.wait_closed(old.sha256, LONG_S)
    askers = [Asker(registry), Asker(registry, version="2")]
    until_waiting(registry, 2)
    registry.load(new.path, new.sha256)
    assert all(asker.answer is None for asker in askers)
    registry.activate("scale", new.sha256)
    assert [asker.result() for asker in askers] == [3.0, 3.0]
    assert registry.waiting == 0
    assert not registry.is_held("scale")


def test_nobody_waits_for_ever(registry: Registry, bundles: tuple[MadeBundle, MadeBundle]) -> None:
    old, new = bundles
    registry.unload("scale", old.sha256, hold_s=0.05)
    error = Asker(registry).result()
    assert isinstance(error, NotReadyError)
    assert "is being replaced" in str(error)
    assert "not there in time" in str(error)
    assert not error.held
    registry.load(new.path, new.sha256)
    registry.activate("scale", new.sha256)  # late, and all the same
    assert Asker(registry).result() == 3.0


def test_a_caller_in_a_hurry_waits_no_longer_than_it_likes(
    registry: Registry, bundles: tuple[MadeBundle, MadeBundle]
) -> None:
    registry.unload("scale", bundles[0].sha256, hold_s=LONG_S)
    assert isinstance(Asker(registry, wait_s=0.02).result(), NotReadyError)
    with pytest.raises(NotReadyError, match="is being loaded") as caught:
        registry.acquire("scale")
    assert caught.value.held


def test_no_more_wait_than_may(registry: Registry, bundles: tuple[MadeBundle, MadeBundle]) -> None:
    old, new = bundles
    registry.unload("scale", old.sha256, hold_s=LONG_S)
    waiting = [Asker(registry), Asker(registry)]
    until_waiting(registry, 2)
    assert "2 requests wait for it" in str(Asker(registry).result())
    registry.load(new.path, new.sha256)
    registry.activate("scale", new.sha256)
    assert [asker.result() for asker in waiting] == [3.0, 3.0]


def test_the_old_version_put_back_answers_those_who_wait(
    registry: Registry, bundles: tuple[MadeBundle, MadeBundle]
) -> None:
    old, _ = bundles
    registry.unload("scale", old.sha256, hold_s=LONG_S)
    asker = Asker(registry)
    until_waiting(registry, 1)
    registry.load(old.path, old.sha256)
    registry.activate("scale", old.sha256)
    assert asker.result() == 2.0


def test_only_the_active_version_holds_its_model(
    registry: Registry, bundles: tuple[MadeBundle, MadeBundle]
) -> None:
    old, new = bundles
    registry.load(new.path, new.sha256)
    registry.unload("scale", new.sha256, hold_s=LONG_S)
    assert not registry.is_held("scale")
    registry.unload("scale", old.sha256)
    with pytest.raises(UnknownServableError):
        registry.acquire_waiting("scale")


def test_the_memory_is_not_said_to_be_free_while_a_request_runs(
    registry: Registry, bundles: tuple[MadeBundle, MadeBundle]
) -> None:
    old, _ = bundles
    with registry.acquire("scale"):
        registry.unload("scale", old.sha256, hold_s=LONG_S)
        assert not registry.wait_closed(old.sha256, 0.01)
    assert registry.wait_closed(old.sha256, LONG_S)


async def test_a_front_on_an_event_loop_waits_without_a_thread(
    registry: Registry, bundles: tuple[MadeBundle, MadeBundle]
) -> None:
    old, new = bundles
    registry.unload("scale", old.sha256, hold_s=LONG_S)

    async def ask() -> float:
        with registry.held("scale") as held:
            assert held is not None
            await asyncio.wait({asyncio.wrap_future(held[0])}, timeout=held[1])
        with registry.acquire("scale") as handle:
            return float(handle.pipeline.run({"x": X})["y"][0, 0])

    asking = [asyncio.create_task(ask()), asyncio.create_task(ask())]
    while registry.waiting < 2:
        await asyncio.sleep(0)
    asking[0].cancel()  # its caller hung up; the other still waits
    await asyncio.to_thread(registry.load, new.path, new.sha256)
    registry.activate("scale", new.sha256)
    async with asyncio.timeout(LONG_S):
        assert await asking[1] == 3.0
    with pytest.raises(asyncio.CancelledError):
        await asking[0]
    assert registry.waiting == 0
