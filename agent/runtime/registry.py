"""Which versions are loaded and which of them answers. A swap replaces a map; readers never wait.

Rules kept here:

- Readers take one reference to an immutable map and a lease from it; writers build a new map under
  a lock.
- A model's active version changes in one assignment: there is no moment without an answer.
- Where memory allows one version only, the old one goes first and the model is *held*: requests wait
  for the next version, a bounded time and a bounded number of them, and are then refused.
- Beside the active version one more may take part: as an arm that answers a share of the requests, as a
  shadow that gets copies, or on standby. Requests that name an arm's version reach it; nobody reaches a shadow.
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
from dataclasses import dataclass, replace
from pathlib import Path

from agent.bundle import Manifest
from agent.errors import DeviceError
from agent.runtime.counters import Counts, VersionCounters
from agent.runtime.errors import NotReadyError, UnknownServableError
from agent.runtime.loaded import Hold, LoadedModel, beside_of, chosen, named, take_part
from agent.runtime.loading import load_warm, read_manifest
from agent.runtime.providers import CPU
from agent.runtime.routing import Asker, Role, Share
from agent.runtime.servable import Beside, Handle, Servable, ServableState
from agent.runtime.session import EngineOptions, threads_of

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
    role: str = ""


class Registry:
    """The loaded models of one process; safe for threads."""

    def __init__(
        self, limits: RegistryLimits | None = None, engine: EngineOptions | None = None
    ) -> None:
        self._limits = limits or RegistryLimits()
        self._engine = engine or EngineOptions()
        self._waiting = 0
        self._models: Mapping[str, LoadedModel] = {}
        self._write = threading.Lock()
        self._retired: list[Servable] = []
        self._idle: queue.SimpleQueue[Servable | None] = queue.SimpleQueue()
        self._closer = threading.Thread(
            target=self._close_idle, name="registry-closer", daemon=True
        )
        self._closer.start()

    # --- requests ---------------------------------------------------------------------------------

    def acquire(self, name: str, version: str = "", asker: Asker | None = None) -> Handle:
        """A lease on the active version, or on the named one; use with ``with``. ``asker``: a request, which an
        arm may have to answer.

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
            servable = chosen(model, asker) if version == "" else named(model, name, version)
            if servable is None:
                raise NotReadyError(f"no version of model {name!r} is active yet")
            handle = servable.lease()
            if handle is not None:
                return handle

    def acquire_waiting(
        self,
        name: str,
        version: str = "",
        wait_s: float | None = None,
        asker: Asker | None = None,
    ) -> Handle:
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
                    return self.acquire(name, version, asker)
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

    def on_one_thread(self, manifest: Manifest) -> bool:
        """Whether a run of the bundle uses one thread of the processor, its caller's, and nothing else."""
        engine = self._engine
        return engine.providers == (CPU,) and threads_of(manifest.intra_op_threads, engine) == 1

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
        present = self._models.get(manifest.model, LoadedModel()).find(sha256)
        if present is not None:
            return present
        pipeline, saved = load_warm(
            Path(folder), manifest, sha256, self._engine, self._limits.warm_up_runs, form
        )
        servable = Servable(pipeline, sha256, saved_form=saved)
        with self._write:
            model = self._models.get(manifest.model, LoadedModel())
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
            model = self._models.get(name, LoadedModel())
            servable = model.find(sha256)
            if servable is None:
                raise DeviceError(
                    f"version {sha256[:12]} of model {name!r} is not loaded, so it cannot be activated"
                )
            old = model.active
            beside = model.beside
            if beside is not None and beside.servable is servable:
                beside = None
            servable.answered_before = True
            servable.take_role("")
            servable.state = ServableState.ACTIVE
            self._put(name, replace(model, active=servable, hold=None, beside=beside))
            if old is not None and old is not servable:
                old.state = ServableState.PREVIOUS
        _end_hold(model)

    def share(self, name: str, share: Share | None) -> None:
        """A loaded version takes part beside the active one as ``share`` says; None: none does any more.

        Said again for the same version and role, only the share changes. It ends when that version is activated
        or unloaded.

        Raises:
            DeviceError: the version is not loaded, or is the active one.
        """
        with self._write:
            model = self._models.get(name, LoadedModel())
            beside = None if share is None else beside_of(model, name, share)
            past = model.beside
            if past is not None and (beside is None or past.servable is not beside.servable):
                take_part(past.servable, None)
            if beside is not None:
                take_part(beside.servable, beside.share.role)
            if model.loaded:
                self._put(name, replace(model, beside=beside))

    def beside(self, name: str) -> Beside | None:
        """What takes part beside the active version of a model."""
        model = self._models.get(name)
        return None if model is None else model.beside

    def unload(self, name: str, sha256: str, hold_s: float = 0.0) -> None:
        """Let a version go; it closes once its last lease ends. Unknown versions are no error.

        With ``hold_s`` the model is held for so long when this was its active version.
        """
        with self._write:
            model = self._models.get(name, LoadedModel())
            servable = model.find(sha256)
            if servable is None:
                return
            rest = tuple(other for other in model.loaded if other is not servable)
            active = None if model.active is servable else model.active
            hold = model.hold
            if model.active is servable and hold_s > 0:
                hold = Hold(time.monotonic() + min(hold_s, self._limits.max_hold_s))
            beside = model.beside
            if beside is not None and beside.servable is servable:
                beside = None
            self._put(name, LoadedModel(active, rest, hold, beside))
            servable.state = ServableState.RETIRED
            servable.shadow = None
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
        """Counters since the last drain: one window a loaded version, and one for each that was let go since, or
        had another role before, and has counted something."""
        with self._write:
            loaded = [servable for model in self._models.values() for servable in model.loaded]
            retired = list(self._retired)
            self._retired = [servable for servable in retired if not servable.closed]
        windows = [_window(servable, servable.counters) for servable in loaded]
        past = [
            (servable, counters) for servable in loaded for counters in servable.all_counters()[1:]
        ]
        past += [
            (servable, counters) for servable in retired for counters in servable.all_counters()
        ]
        last = [_window(servable, counters) for servable, counters in past]
        return windows + [window for window in last if window.counts.any]

    def close(self) -> None:
        """Stop the closing thread. Leases under way are not waited for."""
        self._idle.put(None)
        self._closer.join()

    def _put(self, name: str, model: LoadedModel) -> None:
        """Replace the map: the one assignment that readers see."""
        shadow = model.beside
        if shadow is not None and shadow.share.role is not Role.SHADOW:
            shadow = None
        for servable in model.loaded:
            servable.shadow = shadow if servable is model.active else None
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


def _end_hold(model: LoadedModel) -> None:
    """Wake whoever waits for this model."""
    if model.hold is not None and not model.hold.ended.done():
        model.hold.ended.set_result(None)


def _window(servable: Servable, counters: VersionCounters) -> VersionWindow:
    manifest = servable.manifest
    return VersionWindow(
        manifest.model, manifest.version, servable.sha256, counters.drain(), counters.role
    )


def _give_memory_back() -> None:
    """Ask the C library to return freed memory; only glibc has this."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
