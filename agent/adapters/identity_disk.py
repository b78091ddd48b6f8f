"""The durable writes of the identity store, on the real disk."""

from pathlib import Path

from agent.adapters.durable import make_folder, remove_durable, rename_durable, write_durable

__all__ = ["IdentityDisk"]


class IdentityDisk:
    """Implements agent.identity.store.Disk. Every file is readable by the agent's user alone."""

    __slots__ = ()

    def make_folder(self, path: Path) -> Path:
        return make_folder(path)

    def write(self, path: Path, content: bytes) -> None:
        write_durable(path, content, mode=0o600)

    def rename(self, source: Path, target: Path) -> None:
        rename_durable(source, target)

    def remove(self, path: Path) -> None:
        remove_durable(path)
