"""The registry: what answers when, leases, limits, counters of what went away."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from agent.errors import BundleError, DeviceError
from agent.runtime.errors import ModelLoadError, NotReadyError, UnknownServableError
from agent.runtime.registry import Registry, RegistryLimits
from agent.runtime.routing import Role, Share
from agent.runtime.servable import Handle, Servable
from tests.support.onnx_models import BundleMaker, MadeBundle, scale_bundle

ONE = np.ones((1, 4), np.float32)


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry(RegistryLimits(max_models=2, max_versions_per_model=2))
    yield made
    made.close()


@pytest.fixture
def first(tmp_path: Path) -> MadeBundle:
    return scale_bundle(tmp_path / "first", 2.0, "1.0.0")


@pytest.fixture
def second(tmp_path: Path) -> MadeBundle:
    return scale_bundle(tmp_path / "second", 3.0, "2.0.0")


def answer(registry: Registry, version: str = "") -> float:
    with registry.acquire("scale", version) as handle:
        return float(handle.pipeline.run({"x": ONE})["y"][0, 0])


def closed(servable: object, registry: Registry) -> bool:
    """Whether the servable is closed once the closing thread is done."""
    registry.close()
    return bool(getattr(servable, "closed", False))


def test_a_candidate_does_not_answer(registry: Registry, first: MadeBundle) -> None:
    with pytest.raises(UnknownServableError, match="no model 'scale'"):
        registry.acquire("scale")
    registry.load(first.path, first.sha256)
    with pytest.raises(NotReadyError, match="no version of model 'scale' is active"):
        registry.acquire("scale")
    with pytest.raises(NotReadyError, match=r"version '1.0.0' of model 'scale' is loaded but not"):
        registry.acquire("scale", "1.0.0")
    with pytest.raises(UnknownServableError, match=r"no version '9' of model 'scale'"):
        registry.acquire("scale", "9")
    registry.activate("scale", first.sha256)
    assert answer(registry) == 2.0


def test_a_swap_and_the_way_back(registry: Registry, first: MadeBundle, second: MadeBundle) -> None:
    for made in (first, second):
        registry.load(made.path, made.sha256)
    registry.activate("scale", first.sha256)
    registry.activate("scale", second.sha256)
    assert answer(registry) == 3.0
    assert answer(registry, "1.0.0") == 2.0
    registry.activate("scale", first.sha256)
    assert answer(registry) == 2.0
    registry.unload("scale", second.sha256)
    with pytest.raises(UnknownServableError):
        answer(registry, "2.0.0")
    registry.unload("scale", first.sha256)
    assert registry.names() == []


def test_a_lease_outlives_the_unload(registry: Registry, first: MadeBundle) -> None:
    servable = registry.load(first.path, first.sha256)
    registry.activate("scale", first.sha256)
    with registry.acquire("scale") as handle:
        registry.unload("scale", first.sha256)
        assert not servable.closed
        assert handle.pipeline.run({"x": ONE})["y"][0, 0] == 2.0
        assert servable.lease() is None
    assert closed(servable, registry)


def test_unloading_what_is_not_there_is_no_error(registry: Registry) -> None:
    registry.unload("scale", "0" * 64)


def test_activating_what_is_not_loaded_is_the_devices_error(registry: Registry) -> None:
    with pytest.raises(DeviceError, match="'scale' is not loaded"):
        registry.activate("scale", "0" * 64)


def test_loading_twice_is_loading_once(registry: Registry, first: MadeBundle) -> None:
    assert registry.load(first.path, first.sha256) is registry.load(first.path, first.sha256)


def test_another_manifest_than_asked_for_is_refused(registry: Registry, first: MadeBundle) -> None:
    with pytest.raises(ModelLoadError, match="000000000000 was asked for"):
        registry.load(first.path, "0" * 64)


def test_a_folder_that_is_no_bundle_is_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        registry.load(tmp_path / "nothing", "0" * 64)


def test_what_is_loaded_at_once_is_bounded(
    registry: Registry, first: MadeBundle, second: MadeBundle, tmp_path: Path
) -> None:
    for made in (first, second):
        registry.load(made.path, made.sha256)
    third = scale_bundle(tmp_path / "third", 4.0, "3")
    with pytest.raises(DeviceError, match="2 versions of model 'scale' are loaded"):
        registry.load(third.path, third.sha256)
    for name in ("b", "c"):
        other = BundleMaker(model=name).write(tmp_path / name)
        if name == "b":
            registry.load(other.path, other.sha256)
            continue
        with pytest.raises(DeviceError, match="2 models are loaded"):
            registry.load(other.path, other.sha256)


def test_counters_of_a_version_that_went_are_drained_once(
    registry: Registry, first: MadeBundle, second: MadeBundle
) -> None:
    old = registry.load(first.path, first.sha256)
    registry.load(second.path, second.sha256)
    registry.activate("scale", first.sha256)
    with registry.acquire("scale"):
        registry.activate("scale", second.sha256)
        registry.unload("scale", first.sha256)
        old.counters.answered(0.01)
        counts = {window.version: window.counts.requests for window in registry.drain()}
        assert counts == {"2.0.0": 0, "1.0.0": 1}
        old.counters.answered(0.01)
    assert closed(old, registry)
    counts = {window.version: window.counts.requests for window in registry.drain()}
    assert counts == {"2.0.0": 0, "1.0.0": 1}
    assert [window.version for window in registry.drain()] == ["2.0.0"]


def test_a_swap_between_the_look_and_the_lease_is_looked_at_again(
    registry: Registry, first: MadeBundle, second: MadeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = registry.load(first.path, first.sha256)
    registry.load(second.path, second.sha256)
    registry.activate("scale", first.sha256)
    lease = Servable.lease

    def swapped_meanwhile(servable: Servable) -> Handle | None:
        if servable is old:
            registry.activate("scale", second.sha256)
            registry.unload("scale", first.sha256)
        return lease(servable)

    monkeypatch.setattr(Servable, "lease", swapped_meanwhile)
    assert answer(registry) == 3.0


def test_there_is_no_moment_without_an_active_version(
    registry: Registry, first: MadeBundle, second: MadeBundle, eager_threads: None
) -> None:
    for made in (first, second):
        registry.load(made.path, made.sha256)
    registry.activate("scale", first.sha256)
    stop = threading.Event()
    wrong: list[Exception] = []

    def look() -> None:
        while not stop.is_set():
            try:
                with registry.acquire("scale"):
                    pass
            except NotReadyError as error:
                wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        registry.activate("scale", second.sha256)
        registry.activate("scale", first.sha256)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_swaps_beside_eight_threads_lose_no_request(
    registry: Registry, first: MadeBundle, second: MadeBundle
) -> None:
    registry.load(first.path, first.sha256)
    registry.activate("scale", first.sha256)
    stop = threading.Event()
    wrong: list[object] = []
    asked = [0] * 8

    def ask(me: int) -> None:
        while not stop.is_set():
            try:
                with registry.acquire("scale") as handle:
                    factor = {"1.0.0": 2.0, "2.0.0": 3.0}[handle.servable.manifest.version]
                    got = handle.pipeline.run({"x": ONE})["y"]
                    if not np.array_equal(got, ONE * factor):
                        wrong.append(got)
                    asked[me] += 1
            except Exception as error:  # noqa: BLE001 any failure is what this looks for
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    old, new = first, second
    for _ in range(60):
        registry.load(new.path, new.sha256)
        registry.activate("scale", new.sha256)
        registry.unload("scale", old.sha256)
        old, new = new, old
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(asked)


# --- beside the active version ----------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    request_id: str = ""
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict)


def both(registry: Registry, first: MadeBundle, second: MadeBundle) -> None:
    for bundle in (first, second):
        registry.load(bundle.path, bundle.sha256)
    registry.activate("scale", first.sha256)


def asked(registry: Registry, asker: Asked | None) -> str:
    with registry.acquire("scale", "", asker) as handle:
        handle.servable.counters.answered(0.001)
        return handle.servable.manifest.version


def counted(registry: Registry) -> dict[tuple[str, str], int]:
    return {
        (window.version, window.role): window.counts.requests
        for window in registry.drain()
        if window.counts.any
    }


def test_an_arm_answers_its_share_and_whoever_names_it(
    registry: Registry, first: MadeBundle, second: MadeBundle
) -> None:
    both(registry, first, second)
    share = Share(second.sha256, Role.ARM, 5_000, "", "r")
    registry.share("scale", share)
    versions = {name: asked(registry, Asked(name)) for name in map(str, range(40))}
    assert set(versions.values()) == {"1.0.0", "2.0.0"}
    assert versions == {name: asked(registry, Asked(name)) for name in versions}  # sticky
    assert asked(registry, Asked()) == "1.0.0"  # nothing says where it belongs
    assert asked(registry, None) == "1.0.0"  # not a request
    assert answer(registry, "2.0.0") == 3.0
    windows = {(it.version, it.role): it.counts for it in registry.drain()}
    assert windows["1.0.0", ""].error_kinds == {"unroutable": 1}
    assert windows["1.0.0", ""].requests + windows["2.0.0", "arm"].requests == 2 * len(versions) + 2

    registry.share("scale", replace(share, traffic_bp=10_000))
    assert {asked(registry, Asked(name)) for name in versions} == {"2.0.0"}
    registry.share("scale", None)
    assert {asked(registry, Asked(name)) for name in versions} == {"1.0.0"}
    with pytest.raises(NotReadyError):
        registry.acquire("scale", "2.0.0")
    assert counted(registry) == {("1.0.0", ""): len(versions), ("2.0.0", "arm"): len(versions)}


@pytest.mark.parametrize(("role", "state"), [(Role.SHADOW, "shadow"), (Role.STANDBY, "standby")])
def test_nobody_reaches_a_shadow_or_a_standby(
    registry: Registry, first: MadeBundle, second: MadeBundle, role: Role, state: str
) -> None:
    both(registry, first, second)
    registry.share("scale", Share(second.sha256, role, 10_000, "", "r"))
    active, beside = registry.versions("scale")
    assert (active.shadow is not None, beside.state) == (role is Role.SHADOW, state)
    assert asked(registry, Asked("a")) == "1.0.0"
    with pytest.raises(NotReadyError, match="loaded but not active"):
        registry.acquire("scale", "2.0.0")


def test_an_arm_that_is_activated_takes_part_no_more_and_counts_apart(
    registry: Registry, first: MadeBundle, second: MadeBundle
) -> None:
    both(registry, first, second)
    registry.share("scale", Share(second.sha256, Role.ARM, 10_000, "", "r"))
    asked(registry, Asked("a"))
    with registry.acquire("scale", "", Asked("b")) as under_way:
        counters = under_way.servable.counters
        registry.activate("scale", second.sha256)
        asked(registry, Asked("a"))
        counters.answered(0.001)
    assert registry.beside("scale") is None
    assert counted(registry) == {("2.0.0", ""): 1, ("2.0.0", "arm"): 2}


def test_blue_green_flips_there_and_back_with_both_loaded(
    registry: Registry, first: MadeBundle, second: MadeBundle
) -> None:
    both(registry, first, second)
    registry.share("scale", Share(second.sha256, Role.STANDBY))
    registry.activate("scale", second.sha256)
    registry.share("scale", Share(first.sha256, Role.STANDBY))
    assert (answer(registry), answer(registry, "1.0.0")) == (3.0, 2.0)
    registry.activate("scale", first.sha256)
    assert (answer(registry), registry.beside("scale")) == (2.0, None)


def test_a_shadow_follows_the_active_version_and_ends_with_its_own(
    registry: Registry, first: MadeBundle, second: MadeBundle
) -> None:
    both(registry, first, second)
    registry.share("scale", Share(second.sha256, Role.SHADOW, 100))
    active, shadow = registry.versions("scale")
    beside = active.shadow
    assert beside is not None
    beside.suspended = True
    registry.share("scale", Share(second.sha256, Role.SHADOW, 200))
    assert (active.shadow is beside, beside.suspended, beside.share.traffic_bp) == (True, True, 200)
    assert shadow.shadow is None
    registry.unload("scale", second.sha256)
    assert (active.shadow, registry.beside("scale")) == (None, None)


def test_only_a_loaded_version_beside_another_can_take_part(
    registry: Registry, first: MadeBundle, second: MadeBundle
) -> None:
    registry.load(first.path, first.sha256)
    registry.activate("scale", first.sha256)
    with pytest.raises(DeviceError, match=f"{second.sha256[:12]} of model 'scale' is not loaded"):
        registry.share("scale", Share(second.sha256, Role.ARM, 1))
    with pytest.raises(DeviceError, match="cannot take part beside itself as shadow"):
        registry.share("scale", Share(first.sha256, Role.SHADOW, 1))
    with pytest.raises(DeviceError, match="of model 'nope' is not loaded"):
        registry.share("nope", Share(first.sha256, Role.SHADOW, 1))
    registry.share("nope", None)
    assert registry.names() == ["scale"]
