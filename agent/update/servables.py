"""What the model server holds, as far as the updater asked for it.

Rules kept here:
- A slot is hashed before each load: nothing unverified is ever loaded.
- What was loaded is forgotten when the server process is not the one that loaded it.
- Where memory does not allow two versions of a model, the old one goes first, and comes back when the
  new one cannot be loaded (``memory_policy``). What is only held beside never costs the one that answers.
"""

import logging
from collections.abc import Mapping

from agent.delivery.offload import Offload, run_to_end
from agent.errors import AgentError, BundleError, DeviceError
from agent.ports import ModelServer, Sharing, SlotStore
from agent.update.memory_policy import MemoryLimits, SwapMode
from agent.update.planner import SwapPlanner

__all__ = ["CrashLoopError", "MemoryShortError", "Servables", "ServerAwayError", "SlotDamagedError"]

logger = logging.getLogger(__name__)


class SlotDamagedError(DeviceError):
    """A sealed slot is not what was sealed any more: the disk's fault, not the bundle's."""


class CrashLoopError(BundleError):
    """A bundle that has taken the server or the device down so often that it is not loaded again."""


class MemoryShortError(DeviceError):
    """The bundle does not fit into this device's memory, however it is brought in."""


class ServerAwayError(DeviceError):
    """The model server is not running: nothing is known about the bundle."""


class Servables:
    """Loads, activates and unloads, and remembers what is where."""

    def __init__(
        self,
        server: ModelServer,
        slots: SlotStore,
        offload: Offload,
        planner: SwapPlanner | None = None,
    ) -> None:
        self._planner = planner or SwapPlanner(None, slots, offload, MemoryLimits())
        self._server = server
        self._slots = slots
        self._offload = offload
        self._generation = server.state.generation
        self._loaded: set[tuple[str, str]] = set()
        self._active: dict[str, str] = {}
        self._shared: dict[str, Sharing] = {}

    @property
    def running(self) -> bool:
        return self._server.state.running

    @property
    def generation(self) -> int:
        return self._server.state.generation

    @property
    def last_exit(self) -> str:
        return self._server.state.last_exit

    @property
    def died(self) -> int:
        """The generation of the server process that died last; 0 when none did."""
        state = self._server.state
        return state.generation - 1 if state.running else state.generation

    @property
    def suspects(self) -> tuple[str, ...]:
        """Digests of the bundles that may have caused the last death; empty when nobody knows."""
        return self._server.state.suspects

    def holds(self, model: str, manifest_sha256: str) -> bool:
        """Whether the bundle is loaded, so that serving it takes no load."""
        return (model, manifest_sha256) in self._loaded

    def active(self, model: str) -> str | None:
        """Digest of the bundle that answers for ``model`` in the server that runs now."""
        return self._active.get(model)

    def shared(self, model: str) -> Sharing | None:
        """What takes part beside the active bundle in the server that runs now."""
        return self._shared.get(model)

    def lost(self) -> bool:
        """Whether the server died since the last call; what it held is then forgotten."""
        state = self._server.state
        if state.running and state.generation == self._generation:
            return False
        held = bool(self._loaded) or state.generation != self._generation
        self._loaded.clear()
        self._active.clear()
        self._shared.clear()
        if state.running:
            self._generation = state.generation
        return held

    def plan_measures(self, model: str) -> Mapping[str, float]:
        """How this model was last brought in, for the deployment's report."""
        return self._planner.measures(model)

    async def serve(
        self,
        model: str,
        manifest_sha256: str,
        *,
        may_refuse: bool = False,
        beside_only: bool = False,
    ) -> None:
        """Make ``model`` answer from this slot, loading it first where it is not loaded.

        ``beside_only``: the old version must not make room for it.

        Raises:
            MemoryShortError: it does not fit; only with ``may_refuse`` or ``beside_only``, before anything
                was touched.
            SlotDamagedError: the slot has other bytes than its manifest says, or is gone.
            ServerAwayError: the server does not run.
            BundleError: the model cannot be loaded. DeviceError: the server died or timed out.
        """
        if self._active.get(model) == manifest_sha256:
            return
        if beside_only:
            await self.hold(model, manifest_sha256)
        elif not self.holds(model, manifest_sha256):
            await self._bring_in(model, manifest_sha256, may_refuse=may_refuse)
        await self._server.activate(model, manifest_sha256)
        self._active[model] = manifest_sha256
        self._no_longer_beside(model, manifest_sha256)  # the server has ended that with the swap

    async def hold(self, model: str, manifest_sha256: str) -> None:
        """Load the slot beside what runs, where memory allows both; nothing answers from it yet.

        Raises:
            MemoryShortError: it does not fit beside what runs; nothing was touched. Else like ``serve``.
        """
        if self.holds(model, manifest_sha256):
            return
        if self.running:
            plan = await self._planner.plan(
                model, manifest_sha256, self._others(model), may_refuse=True
            )
            if plan is not None and plan.mode is not SwapMode.BESIDE:
                raise MemoryShortError(
                    f"{plan.reason}; both versions have to be in memory, so it is not loaded"
                )
        await self.load(model, manifest_sha256)

    async def share(self, model: str, sharing: Sharing | None) -> None:
        """Let a held bundle take part as ``sharing`` says; None: nothing does any more.

        Raises:
            DeviceError: it is not loaded, or the server died or timed out.
        """
        await self._server.share(model, sharing)
        if sharing is None:
            self._shared.pop(model, None)
        else:
            self._shared[model] = sharing

    def _others(self, model: str) -> list[str]:
        return sorted(digest for name, digest in self._loaded if name == model)

    async def _bring_in(self, model: str, manifest_sha256: str, *, may_refuse: bool) -> None:
        """Load it beside what runs, or in place of it where memory allows only that."""
        others = self._others(model)
        plan = None
        if self.running:
            plan = await self._planner.plan(model, manifest_sha256, others, may_refuse=may_refuse)
        if plan is not None and plan.mode is SwapMode.REFUSE:
            raise MemoryShortError(plan.reason)
        if plan is None or plan.mode is SwapMode.BESIDE:
            await self.load(model, manifest_sha256)
            return
        active = self._active.get(model)
        await self._verified_path(manifest_sha256)  # a damaged slot must not cost the old version
        try:
            for digest in others:
                await self._make_room(model, digest)
            await self.load(model, manifest_sha256)
        except AgentError:
            if active is not None and self.running:
                await self._put_back(model, active)
            raise

    async def _make_room(self, model: str, manifest_sha256: str) -> None:
        """Let a version go and wait for its memory; requests for the model wait for the next one."""
        self._forget(model, manifest_sha256)
        await self._server.unload(model, manifest_sha256, hold_s=self._planner.hold_s)

    async def _put_back(self, model: str, manifest_sha256: str) -> None:
        """Serve again what had to make room. Where that fails too, whoever asked will try again."""
        try:
            await self.load(model, manifest_sha256)
            await self._server.activate(model, manifest_sha256)
        except AgentError as error:
            logger.error("model %s: %s… is not back: %s", model, manifest_sha256[:12], error)
        else:
            self._active[model] = manifest_sha256

    async def load(self, model: str, manifest_sha256: str) -> None:
        """Verify the slot and load it beside what runs. Raises like ``serve``."""
        if (model, manifest_sha256) in self._loaded:
            return
        if not self.running:
            raise ServerAwayError(
                f"the model server is not running (last exit: {self._server.state.last_exit or 'none'}); "
                f"it is being started again"
            )
        path = await self._verified_path(manifest_sha256)
        await self._server.load(path, manifest_sha256)
        self._loaded.add((model, manifest_sha256))

    async def drop(self, model: str, manifest_sha256: str) -> None:
        """Let a bundle go."""
        self._forget(model, manifest_sha256)
        if not self.running:
            return
        try:
            await self._server.unload(model, manifest_sha256)
        except (BundleError, DeviceError) as error:
            # It costs memory at worst: the next start of the server does not load it.
            logger.warning(
                "model %s: %s… could not be unloaded: %s", model, manifest_sha256[:12], error
            )

    def _forget(self, model: str, manifest_sha256: str) -> None:
        self._loaded.discard((model, manifest_sha256))
        if self._active.get(model) == manifest_sha256:
            del self._active[model]
        self._no_longer_beside(model, manifest_sha256)

    def _no_longer_beside(self, model: str, manifest_sha256: str) -> None:
        shared = self._shared.get(model)
        if shared is not None and shared.manifest_sha256 == manifest_sha256:
            del self._shared[model]

    async def _verified_path(self, manifest_sha256: str) -> str:
        try:
            await run_to_end(self._offload, self._slots.verify, manifest_sha256)
            return self._slots.path(manifest_sha256)
        except AgentError as error:
            raise SlotDamagedError(
                f"slot {manifest_sha256[:12]}… is damaged and will not be loaded: {error}"
            ) from error
