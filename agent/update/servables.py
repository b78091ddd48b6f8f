"""What the model server holds, as far as the updater asked for it.

Rules kept here:
- A slot is hashed before each load: nothing unverified is ever loaded.
- What was loaded is forgotten when the server process is not the one that loaded it.
"""

from agent.delivery.offload import Offload, run_to_end
from agent.errors import AgentError, DeviceError
from agent.ports import ModelServer, SlotStore

__all__ = ["Servables", "ServerAwayError", "SlotDamagedError"]


class SlotDamagedError(DeviceError):
    """A sealed slot is not what was sealed any more: the disk's fault, not the bundle's."""


class ServerAwayError(DeviceError):
    """The model server is not running: nothing is known about the bundle."""


class Servables:
    """Loads, activates and unloads, and remembers what is where."""

    def __init__(self, server: ModelServer, slots: SlotStore, offload: Offload) -> None:
        self._server = server
        self._slots = slots
        self._offload = offload
        self._generation = server.state.generation
        self._loaded: set[tuple[str, str]] = set()
        self._active: dict[str, str] = {}

    @property
    def running(self) -> bool:
        return self._server.state.running

    @property
    def generation(self) -> int:
        return self._server.state.generation

    @property
    def last_exit(self) -> str:
        return self._server.state.last_exit

    def active(self, model: str) -> str | None:
        """Digest of the bundle that answers for ``model`` in the server that runs now."""
        return self._active.get(model)

    def lost(self) -> bool:
        """Whether the server died since the last call; what it held is then forgotten."""
        state = self._server.state
        if state.running and state.generation == self._generation:
            return False
        held = bool(self._loaded) or state.generation != self._generation
        self._loaded.clear()
        self._active.clear()
        if state.running:
            self._generation = state.generation
        return held

    async def serve(self, model: str, manifest_sha256: str) -> None:
        """Make ``model`` answer from this slot, loading it first where it is not loaded.

        Raises:
            SlotDamagedError: the slot has other bytes than its manifest says, or is gone.
            ServerAwayError: the server does not run.
            BundleError: the model cannot be loaded. DeviceError: the server died or timed out.
        """
        if self._active.get(model) == manifest_sha256:
            return
        await self.load(model, manifest_sha256)
        await self._server.activate(model, manifest_sha256)
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
        """Let a bundle go. Raises DeviceError when the server does not answer."""
        self._loaded.discard((model, manifest_sha256))
        if self._active.get(model) == manifest_sha256:
            del self._active[model]
        if self.running:
            await self._server.unload(model, manifest_sha256)

    async def _verified_path(self, manifest_sha256: str) -> str:
        try:
            await run_to_end(self._offload, self._slots.verify, manifest_sha256)
            return self._slots.path(manifest_sha256)
        except AgentError as error:
            raise SlotDamagedError(
                f"slot {manifest_sha256[:12]}… is damaged and will not be loaded: {error}"
            ) from error
