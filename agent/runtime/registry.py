"""Which versions are loaded and which of them answers. A swap replaces a map; readers never wait.

Rules kept here:

- Readers take one reference to an immutable map and a lease from it; writers build a new map under
  a lock.
- A model's active version changes in one assignment: there is no moment without an answer.
- Where memory allows one version only, the old one goes first and the model is *held*: requests wait
  for the next version, a bounded time and a bounded number of them, and are then refused.
- A version that was let go closes when its last lease ends, on the registry's own thread, and its
  counters are kept until they are drained.
"""

import ctypes
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.bundle import Manifest
from agent.errors import DeviceError
from agent.runtime.counters import Counts
from agent.runtime.errors import NotReadyError, UnknownServableError
from agent.runtime.loading import load_warm, read_manifest
from agent.runtime.servable import Handle, Servable, ServableState
from agent.runtime.session import EngineOptions

__all__ = ["Registry", "RegistryLimits", "VersionWindow"]


@dataclass(frozen=True, slots=True)
class RegistryLimits:
    """Bounds of what is loaded at once."""

    max_models: int = 32
    max_versions_per_model: int = 3
    """Active, previous and one candidate."""
    warm_up_runs: int = 3
    max_hold_s: float = 60.0
    """How long a model may be held: requests wait so long for its next version at most."""
    max_waiting: int = 64
    """Requests that wait for held models, all together; more are refused at once."""
    max_retired: int = 64
    """Versions that were let go and wait for their last lease or for their counters to be
    drained."""


@dataclass(frozen=True, slots=True)
class VersionWindow:
    """Counters of one version since the last drain."""

    model: str
    version: str
    manifest_sha256: str
    counts: Counts


@dataclass(frozen=True, slots=True)
class _Hold:
    """A model without a version, until the next one answers or the time is over."""

    until_s: float
    ended: "Future[None]" = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Model:
    """A model's loaded versions, newest last, and the one that answers."""

    active: Servable | None = None
    loaded: tuple[Servable, ...] = ()
    hold: "_Hold | None" = None

    def find(self, sha256: str) -> Servable | None:
        return next((servable for servable in self.loaded if servable.sha256 == sha256), None)


class Registry:
    """The loaded models of one process; safe for threads."""

    def __init__(
        self, limits: RegistryLimits | None = None, engine: EngineOptions | None = None
    ) -> None:
        self._limits = limits or RegistryLimits()
        self._engine = engine or EngineOptions()
        self._waiting = 0
        self._models: Mapping[str, _Model] = {}
        self._write = threading.Lock()
        self._retired: list[Servable] = []
        self._idle: queue.SimpleQueue[Servable | None] = queue.SimpleQueue()
        self._closer = threading.Thread(
            target=self._close_idle, name="registry-closer", daemon=True
        )
        self._closer.start()

    # --- requests ---------------------------------------------------------------------------------

    def acquire(self, name: str, version: str = "") -> Handle:
        """A lease on the active version, or on the named one; use with ``with``.

        Raises:
            UnknownServableError: no such model or version. NotReadyError: loaded, but nothing
            answers yet; ``held`` when waiting helps (see ``held``, ``acquire_waiting``).
        """
        while True:  # again only when a version was let go between the look and the lease
            model = self._models.get(name)
            if model is None:
                raise UnknownServableError(f"there is no model {name!r} on this device")
            if model.hold is not None and model.active is None:
                raise _held_error(name, held=time.monotonic() < model.hold.until_s)
            servable = model.active if version == "" else _by_version(model, name, version)
            if servable is None:
                raise NotReadyError(f"no version of model {name!r} is active yet")
            handle = servable.lease()
            if handle is not None:
                return handle

    def acquire_waiting(self, name: str, version: str = "", wait_s: float | None = None) -> Handle:
        """Like ``acquire``; blocks while the model is held, for ``wait_s`` at most (None: until the
        hold ends). For threads; a front on an event loop awaits ``held`` instead.

        Raises:
            UnknownServableError, NotReadyError: as ``acquire``, also when waiting was in vain or too
            many wait already.
        """
        give_up_s = None if wait_s is None else time.monotonic() + wait_s
        while True:
            with self.held(name) as ended:
                if ended is None:
                    return self.acquire(name, version)
                future, left_s = ended
                if give_up_s is not None:
                    left_s = min(left_s, give_up_s - time.monotonic())
                try:
                    future.result(max(left_s, 0.0))
                except TimeoutError:
                    raise _held_error(name, held=False) from None

    @property
    def waiting(self) -> int:
        """How many requests wait for held models now."""
        return self._waiting

    def is_held(self, name: str) -> bool:
        """Whether the model waits for its next version: a glance, for every request."""
        model = self._models.get(name)
        return model is not None and model.hold is not None and model.active is None

    @contextmanager
    def held(self, name: str) -> "Iterator[tuple[Future[None], float] | None]":
        """None when the model is not held; else a future that is done when its next version answers,
        and the seconds after which waiting is in vain. Whoever is inside counts as waiting.

        Raises:
            NotReadyError: too many requests wait already.
        """
        model = self._models.get(name)
        hold = None if model is None or model.active is not None else model.hold
        left_s = 0.0 if hold is None else hold.until_s - time.monotonic()
        if hold is None or left_s <= 0:
            yield None
            return
        with self._write:
            if self._waiting >= self._limits.max_waiting:
                raise NotReadyError(
                    f"model {name!r} is being replaced and {self._waiting} requests wait for it; "
                    f"ask again soon"
                )
            self._waiting += 1
        try:
            yield hold.ended, left_s
        finally:
            with self._write:
                self._waiting -= 1

    def versions(self, name: str) -> Sequence[Servable]:
        """The loaded versions of a model, the active one first; empty when there is no such
        model."""
        model = self._models.get(name)
        if model is None:
            return ()
        return sorted(model.loaded, key=lambda servable: servable is not model.active)

    def names(self) -> Sequence[str]:
        """Models with a loaded version, in order."""
        return sorted(self._models)

    # --- changes ----------------------------------------------------------------------------------

    def load(self, folder: str | Path, sha256: str, form: Path | None = None) -> Servable:
        """Load the bundle in ``folder`` beside what runs and warm it up. It does not answer yet. A
        version that is loaded already is left as it is. ``form``: where its saved form may be.

        Raises:
            BundleError: the manifest is another one, or the model cannot be loaded or run.
            DeviceError: too much is loaded.
        """
        manifest = read_manifest(Path(folder), sha256)
        self._check_room(manifest, sha256)
        present = self._models.get(manifest.model, _Model()).find(sha256)
        if present is not None:
            return present
        pipeline, saved = load_warm(
            Path(folder), manifest, sha256, self._engine, self._limits.warm_up_runs, form
        )
        servable = Servable(pipeline, sha256, saved_form=saved)
        with self._write:
            model = self._models.get(manifest.model, _Model())
            present = model.find(sha256)
            if present is not None:
                return present
            self._put(manifest.model, replace(model, loaded=(*model.loaded, servable)))
        _give_memory_back()  # what loading took beyond what it keeps, before another load adds to it
        return servable

    def activate(self, name: str, sha256: str) -> None:
        """Requests for ``name`` go to this version from now on. The old one stays loaded.

        Raises:
            DeviceError: it is not loaded.
        """
        with self._write:
            model = self._models.get(name, _Model())
            servable = model.find(sha256)
            if servable is None:
                raise DeviceError(
                    f"version {sha256[:12]} of model {name!r} is not loaded, so it cannot be activated"
                )
            old = model.active
            servable.state = ServableState.ACTIVE
            self._put(name, replace(model, active=servable, hold=None))
            if old is not None and old is not servable:
                old.state = ServableState.PREVIOUS
        _end_hold(model)

    def unload(self, name: str, sha256: str, hold_s: float = 0.0) -> None:
        """Let a version go; it closes once its last lease ends. Unknown versions are no error.

        With ``hold_s`` the model is held for so long when this was its active version.
        """
        with self._write:
            model = self._models.get(name, _Model())
            servable = model.find(sha256)
            if servable is None:
                return
            rest = tuple(other for other in model.loaded if other is not servable)
            active = None if model.active is servable else model.active
            hold = model.hold
            if model.active is servable and hold_s > 0:
                hold = _Hold(time.monotonic() + min(hold_s, self._limits.max_hold_s))
            self._put(name, _Model(active, rest, hold))
            servable.state = ServableState.RETIRED
            self._retired.append(servable)
            self._bound_retired()
        servable.retire(self._idle.put)

    def wait_closed(self, sha256: str, timeout_s: float) -> bool:
        """Wait until no version of this digest that was let go holds memory any more. False: leases
        on it go on."""
        with self._write:
            going = [servable for servable in self._retired if servable.sha256 == sha256]
        deadline_s = time.monotonic() + timeout_s
        return all(
            servable.wait_closed(max(0.0, deadline_s - time.monotonic())) for servable in going
        )

    def drain(self) -> Sequence[VersionWindow]:
        """Counters since the last drain: one window a loaded version, and one for each that was let
        go since and has counted something."""
        with self._write:
            loaded = [servable for model in self._models.values() for servable in model.loaded]
            retired = list(self._retired)
            self._retired = [servable for servable in retired if not servable.closed]
        windows = [_window(servable) for servable in loaded]
        last = [_window(servable) for servable in retired]
        return windows + [
            window for window in last if window.counts.requests or window.counts.input_violations
        ]

    def close(self) -> None:
        """Stop the closing thread. Leases under way are not waited for."""
        self._idle.put(None)
        self._closer.join()

    def _put(self, name: str, model: _Model) -> None:
        """Replace the map: the one assignment that readers see."""
        models = dict(self._models)
        models[name] = model
        if not model.loaded and model.hold is None:
            del models[name]
        self._models = models

    def _bound_retired(self) -> None:
        """Without drains, forget the counters of the versions that went first."""
        while len(self._retired) > self._limits.max_retired:
            self._retired.pop(0)

    def _check_room(self, manifest: Manifest, sha256: str) -> None:
        model = self._models.get(manifest.model)
        if model is None:
            if len(self._models) >= self._limits.max_models:
                raise DeviceError(
                    f"{len(self._models)} models are loaded, no more fit ({manifest.model!r} came)"
                )
            return
        if model.find(sha256) is None and len(model.loaded) >= self._limits.max_versions_per_model:
            raise DeviceError(
                f"{len(model.loaded)} versions of model {manifest.model!r} are loaded; unload one before the next"
            )

    def _close_idle(self) -> None:
        while (servable := self._idle.get()) is not None:
            servable.close(_give_memory_back)


def _held_error(name: str, *, held: bool) -> NotReadyError:
    text = "its next version is being loaded" if held else "its next version is not there in time"
    return NotReadyError(
        f"model {name!r} is being replaced: memory allows one version at a time, and {text}; "
        f"ask again soon",
        held=held,
    )


def _end_hold(model: _Model) -> None:
    """Wake whoever waits for this model."""
    if model.hold is not None and not model.hold.ended.done():
        model.hold.ended.set_result(None)


def _by_version(model: _Model, name: str, version: str) -> Servable:
    """The version that answers under this name: the active one first, then the newest that was
    active."""
    found = [servable for servable in model.loaded if servable.manifest.version == version]
    if not found:
        raise UnknownServableError(
            f"there is no version {version!r} of model {name!r} on this device"
        )
    if model.active in found:
        assert model.active is not None
        return model.active
    answering = [servable for servable in found if servable.state is not ServableState.CANDIDATE]
    if not answering:
        raise NotReadyError(f"version {version!r} of model {name!r} is loaded but not active yet")
    return answering[-1]


def _window(servable: Servable) -> VersionWindow:
    manifest = servable.manifest
    return VersionWindow(
        manifest.model, manifest.version, servable.sha256, servable.counters.drain()
    )


def _give_memory_back() -> None:
    """Ask the C library to return freed memory; only glibc has this."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
