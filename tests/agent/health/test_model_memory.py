"""What loaded bundles state together, and what a server may say about it."""

import pytest

from agent.health.model_memory import RUNTIME_ROOM_BYTES, model_memory
from agent.ports import ModelMemory

MIB = 1 << 20


def test_the_budgets_of_all_loaded_bundles_count_together():
    said = [
        {"bundle": "bundles/edge/a-1", "bytes": 64 * MIB},
        {"bundle": "bundles/edge/b-2", "bytes": 0},
    ]
    allowed_bytes = 70 * MIB + RUNTIME_ROOM_BYTES + 64 * MIB + 1024 * MIB
    assert model_memory(said, 70 * MIB, 99 * MIB) == ModelMemory(
        99 * MIB, allowed_bytes, ("bundles/edge/a-1 64 MiB", "bundles/edge/b-2 1024 MiB")
    )


@pytest.mark.parametrize(("empty_bytes", "held_bytes"), [(None, 1), (1, None), (0, 1)])
def test_what_is_not_known_is_not_judged(empty_bytes, held_bytes):
    assert model_memory([{"bundle": "a", "bytes": 1}], empty_bytes, held_bytes) is None


@pytest.mark.parametrize(
    "said", [None, [], 7, "text", [{}], [{"bundle": "a"}], [{"bundle": "a", "bytes": "many"}], [3]]
)
def test_a_server_may_say_anything(said):
    assert model_memory(said, 1, 1) is None


def test_a_negative_budget_takes_nothing_from_the_others():
    found = model_memory([{"bundle": "a", "bytes": -5}, {"bundle": "b", "bytes": 7}], 1, 1)
    assert found is not None
    assert found.allowed_bytes == 1 + RUNTIME_ROOM_BYTES + 7
