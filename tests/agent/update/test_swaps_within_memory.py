"""Deployments on a device that is short of memory: who serves at every moment, and what is reported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.bundle import Objectives
from agent.errors import BundleError, DeviceError

MIB = 1 << 20


@dataclass
class Memory:
    """A device's memory: so much is left beside what the server holds."""

    total: int
    sizes: dict[str, int] = field(default_factory=dict)
    held: Callable[[], set[str]] = set
    kept: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def available_bytes(self) -> int:
        return self.total - sum(self.sizes.get(digest, 0) for digest in self.held())

    def model_bytes(self, manifest_sha256: str) -> int | None:
        return self.sizes.get(manifest_sha256)

    def keep_swap(self, manifest_sha256: str, plan: Mapping[str, Any], /) -> None:
        self.kept[manifest_sha256] = plan


@pytest.fixture
async def tight(new_world: Any, bundle_of: Any) -> Any:
    """A device that serves version 1, of 100 MiB, with 150 MiB free beside it."""
    memory = Memory(250 * MIB)
    world = new_world(memory=memory)
    memory.held = lambda: world.server.loaded
    old = bundle_of("1")
    memory.sizes[old.sha256] = 100 * MIB
    await world.installed(old)
    yield world, memory, old
    await world.off()


def measures(world: Any, phase: str) -> dict[str, float]:
    from protos import report_pb2

    number = report_pb2.Phase.Value(f"PHASE_{phase.upper()}")
    events = [event for event in world.events if event.phase == number and event.measures]
    return dict(events[-1].measures)


async def test_what_fits_is_loaded_beside(tight: Any, bundle_of: Any) -> None:
    world, memory, _ = tight
    new = bundle_of("2")
    memory.sizes[new.sha256] = 80 * MIB
    await world.installed(new, "r1")
    assert world.server.held == []
    assert memory.kept[new.sha256]["mode"] == "beside"
    assert measures(world, "probation")["swap_beside"] == 1.0


async def test_what_does_not_fit_takes_the_place_of_the_old_one(tight: Any, bundle_of: Any) -> None:
    world, memory, old = tight
    new = bundle_of("2")
    memory.sizes[new.sha256] = 120 * MIB
    await world.installed(new, "r1")
    assert world.server.held == [("m", old.sha256)]
    assert memory.kept[new.sha256]["mode"] == "unload_first"
    told = measures(world, "probation")
    assert told["swap_beside"] == 0.0
    assert (told["swap_needed_bytes"], told["swap_available_bytes"]) == (120 * MIB, 150 * MIB)


async def test_what_never_fits_is_refused_and_the_old_one_untouched(
    tight: Any, bundle_of: Any
) -> None:
    world, memory, old = tight
    new = world.fleet.add(bundle_of("2"))
    memory.sizes[new.sha256] = 300 * MIB
    world.updater.desire([world.install(new, "r1")])
    await world.run_for(200)
    assert world.history("r1")[-1] == "refused:memory_short"
    assert world.served() == old.sha256
    assert world.server.held == []
    assert measures(world, "revert")["swap_needed_bytes"] == 300 * MIB


@pytest.mark.parametrize("error", [BundleError("no such operator"), DeviceError("no memory")])
async def test_the_old_one_comes_back_when_the_new_one_cannot_be_loaded(
    tight: Any, bundle_of: Any, error: Exception
) -> None:
    world, memory, old = tight
    new = world.fleet.add(bundle_of("2"))
    memory.sizes[new.sha256] = 120 * MIB
    world.server.load_errors[new.sha256] = [error]
    world.updater.desire([world.install(new, "r1")])
    await world.run_for(200)
    assert world.server.held == [("m", old.sha256)]
    assert world.served() == old.sha256
    assert world.history("r1")[-1].startswith("refused:")
    assert world.record().slots.active.manifest_sha256 == old.sha256


async def test_the_old_one_comes_back_when_the_server_dies_of_the_new_one(
    tight: Any, bundle_of: Any
) -> None:
    world, memory, old = tight
    new = world.fleet.add(bundle_of("2"))
    memory.sizes[new.sha256] = 120 * MIB
    world.server.load_errors[new.sha256] = ["crash"]
    world.updater.desire([world.install(new, "r1")])
    await world.run_for(200)
    assert world.served() == old.sha256
    assert world.history("r1")[-1] == "refused:server_crashed"


async def test_a_damaged_slot_does_not_cost_the_old_version(tight: Any, bundle_of: Any) -> None:
    world, memory, old = tight
    new = world.fleet.add(bundle_of("2"))
    memory.sizes[new.sha256] = 120 * MIB
    world.trial.results[new.sha256] = []
    run = world.trial.run

    async def run_then_damage(path: str, manifest: Any) -> Any:
        result = await run(path, manifest)
        if path.endswith(new.sha256):
            world.slots.damaged.add(new.sha256)
        return result

    world.trial.run = run_then_damage
    world.updater.desire([world.install(new, "r1")])
    await world.run_for(30)
    assert world.served() == old.sha256
    assert world.server.held == []


async def test_a_revert_makes_room_as_well(tight: Any, bundle_of: Any) -> None:
    world, memory, old = tight
    new = world.fleet.add(bundle_of("2", objectives=Objectives(probation_s=60.0)))
    memory.sizes[new.sha256] = 180 * MIB
    world.updater.desire([world.install(new, "r1")])
    await world.run_for(20)
    assert world.served() == new.sha256
    world.window(new, requests=100, failures=90)
    await world.run_for(120)
    assert world.history("r1")[-1].startswith("reverted:")
    assert world.served() == old.sha256
    assert world.server.held == [("m", old.sha256), ("m", new.sha256)]


async def test_what_served_before_is_put_back_even_where_it_looks_too_large(
    tight: Any, bundle_of: Any
) -> None:
    world, memory, old = tight
    await world.off()
    memory.total = 10 * MIB
    world.boot()
    await world.run_for(5)
    assert world.served() == old.sha256
