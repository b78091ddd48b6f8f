"""Which versions are loaded and which of them answers. A swap replaces a map; readers never wait.

Rules kept here:

- Readers take one reference to an immutable map and a lease from it; writers build a new map under
  a lock.
- A model's active version changes in one assignment: there is no moment without an answer.
- A version that was let go closes when its last lease ends, on the registry's own thread, and its
  counters are kept until they are drained.
"""

import ctypes
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.bundle import Manifest, manifest_sha256
from agent.bundle.folder import read_bundle
from agent.errors import DeviceError
from agent.runtime.counters import Counts
from agent.runtime.errors import ModelLoadError, NotReadyError, UnknownServableError
from agent.runtime.golden import load_inputs
from agent.runtime.pipeline import Pipeline, example_inputs
from agent.runtime.servable import Handle, Servable, ServableState

__all__ = ["Registry", "RegistryLimits", "VersionWindow"]


@dataclass(frozen=True, slots=True)
class RegistryLimits:
    """Bounds of what is loaded at once."""

    max_models: int = 32
    max_versions_per_model: int = 3
    """Active, previous and one candidate."""
    warm_up_runs: int = 3
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
class _Model:
    """A model's loaded versions, newest last, and the one that answers."""

    active: Servable | None = None
    loaded: tuple[Servable, ...] = ()

    def find(self, sha256: str) -> Servable | None:
        return next((servable for servable in self.loaded if servable.sha256 == sha256), None)


class Registry:
    """The loaded models of one process; safe for threads."""

    def __init__(self, limits: RegistryLimits | None = None) -> None:
        self._limits = limits or RegistryLimits()
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
            answers yet.
        """
        while True:  # again only when a version was let go between the look and the lease
            model = self._models.get(name)
            if model is None:
                raise UnknownServableError(f"there is no model {name!r} on this device")
            servable = model.active if version == "" else _by_version(model, name, version)
            if servable is None:
                raise NotReadyError(f"no version of model {name!r} is active yet")
            handle = servable.lease()
            if handle is not None:
                return handle

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

    def load(self, folder: str | Path, sha256: str) -> Servable:
        """Load the bundle in ``folder`` beside what runs and warm it up. It does not answer yet. A
        version that is loaded already is left as it is.

        Raises:
            BundleError: the manifest is another one, or the model cannot be loaded or run.
            DeviceError: too much is loaded.
        """
        manifest = _read_manifest(Path(folder), sha256)
        self._check_room(manifest, sha256)
        present = self._models.get(manifest.model, _Model()).find(sha256)
        if present is not None:
            return present
        pipeline = Pipeline.load(folder, manifest)
        _warm_up(pipeline, folder, self._limits.warm_up_runs)
        servable = Servable(pipeline, sha256)
        with self._write:
            model = self._models.get(manifest.model, _Model())
            present = model.find(sha256)
            if present is not None:
                return present
            self._put(manifest.model, replace(model, loaded=(*model.loaded, servable)))
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
            self._put(name, replace(model, active=servable))
            if old is not None and old is not servable:
                old.state = ServableState.PREVIOUS

    def unload(self, name: str, sha256: str) -> None:
        """Let a version go; it closes once its last lease ends. Unknown versions are no error."""
        with self._write:
            model = self._models.get(name, _Model())
            servable = model.find(sha256)
            if servable is None:
                return
            rest = tuple(other for other in model.loaded if other is not servable)
            active = None if model.active is servable else model.active
            self._put(name, _Model(active, rest))
            servable.state = ServableState.RETIRED
            self._retired.append(servable)
            self._bound_retired()
        servable.retire(self._idle.put)

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
        if not model.loaded:
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
            servable.close()
            _give_memory_back()


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


def _read_manifest(folder: Path, sha256: str) -> Manifest:
    manifest, raw = read_bundle(folder)
    found = manifest_sha256(raw)
    if found != sha256:
        raise ModelLoadError(
            f"the bundle in {folder} is {found[:12]}, but {sha256[:12]} was asked for"
        )
    return manifest


def _warm_up(pipeline: Pipeline, folder: str | Path, runs: int) -> None:
    manifest = pipeline.manifest
    golden = manifest.golden
    inputs = load_inputs(folder, manifest, golden[0]) if golden else example_inputs(manifest)
    for _ in range(runs):
        pipeline.run(inputs)


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
