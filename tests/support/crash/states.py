"""Every state in which a power cut may leave a folder, from the operations that were done in it. Pure but for writing.

The model is no kinder than POSIX: what was written to a file since its last sync may be there, in part, out of order,
torn, as zeros or as garbage; what was done to names since their folder was synced may be there up to any point, names
in the order in which they changed. A synced file without a synced name is a file that may be gone.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.crash.recorder import Op

__all__ = ["CrashState", "crash_states", "without_syncs"]

MOST_FILES_APART = 3
Tree = dict[str, "bytes | Tree"]


@dataclass(frozen=True)
class CrashState:
    """What is on the disk after a power cut, and what the child had said until then."""

    tree: Tree
    said: tuple[str, ...]
    where: str

    def write(self, folder: Path) -> None:
        """Make it real below ``folder``."""
        _write(self.tree, folder)


def _write(tree: Tree, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            _write(content, folder / name)


@dataclass
class _File:
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Writes since the last sync: where and what; None cuts or grows the file to there."""


@dataclass
class _Folder:
    durable: dict[str, "_File | _Folder"] = field(default_factory=dict)


@dataclass
class _Rename:
    """Names that change together: (folder, name, what it names then or None)."""

    changes: tuple[tuple[_Folder, str, "_File | _Folder | None"], ...]


class _Disk:
    def __init__(self) -> None:
        self.top = _Folder()
        self.by_inode: dict[str, _File | _Folder] = {}
        self.pending: list[_Rename] = []
        self.said: list[str] = []

    def apply(self, op: Op) -> None:
        what, parts = op.what, op.parts
        if what == "B":
            self.by_inode[parts[0]] = self.top
        elif what in "CM":
            made: _File | _Folder = _File() if what == "C" else _Folder()
            self.by_inode[parts[1]] = made
            self._name((self._folder(parts[0]), parts[2], made))
        elif what == "W":
            self._file(parts[0]).pending.append((int(parts[1]), bytes.fromhex(parts[2])))
        elif what == "T":
            self._file(parts[0]).pending.append((int(parts[1]), None))
        elif what == "S":
            self._sync(self.by_inode[parts[0]])
        elif what == "R":
            source, target = self._folder(parts[0]), self._folder(parts[2])
            moved = self._now(source)[parts[1]]
            self._name((target, parts[3], moved), (source, parts[1], None))
        elif what == "U":
            self._name((self._folder(parts[0]), parts[1], None))
        else:
            self.said.append(" ".join(parts))

    def _name(self, *changes: tuple[_Folder, str, "_File | _Folder | None"]) -> None:
        self.pending.append(_Rename(changes))

    def _folder(self, inode: str) -> _Folder:
        found = self.by_inode[inode]
        assert isinstance(found, _Folder)
        return found

    def _file(self, inode: str) -> _File:
        found = self.by_inode[inode]
        assert isinstance(found, _File)
        return found

    def _now(self, folder: _Folder) -> dict[str, "_File | _Folder"]:
        return names_after(self.pending).get(id(folder), dict(folder.durable))

    def _sync(self, node: _File | _Folder) -> None:
        if isinstance(node, _File):
            node.durable, node.pending = content_of(node, node.pending), []
            return
        stays: list[_Rename] = []
        for rename in self.pending:
            if any(folder is node for folder, _, _ in rename.changes):
                for folder, name, target in rename.changes:
                    _set(folder.durable, name, target)
            else:
                stays.append(rename)
        self.pending = stays


def _set(names: dict[str, "_File | _Folder"], name: str, node: "_File | _Folder | None") -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def names_after(renames: Sequence[_Rename]) -> dict[int, dict[str, "_File | _Folder"]]:
    """What the folders name once these changes have reached the disk, by id of the folder."""
    found: dict[int, dict[str, _File | _Folder]] = {}
    for rename in renames:
        for folder, name, node in rename.changes:
            _set(found.setdefault(id(folder), dict(folder.durable)), name, node)
    return found


def content_of(file: _File, writes: Sequence[tuple[int, bytes | None]]) -> bytes:
    """The durable content with these writes on it."""
    content = bytearray(file.durable)
    for at, data in writes:
        if data is None:
            del content[at:]
            content.extend(bytes(max(at - len(content), 0)))
            continue
        content.extend(bytes(max(at - len(content), 0)))
        content[at : at + len(data)] = data
    return bytes(content)


def _ways(file: _File) -> dict[str, bytes]:
    """What may be left of the writes that were not synced."""
    writes = file.pending
    if not writes:
        return {"lost": file.durable, "all": file.durable}
    at, last = writes[-1]
    ways = {
        "lost": file.durable,
        "all": content_of(file, writes),
        "no last": content_of(file, writes[:-1]),
        "only last": content_of(file, writes[-1:]),
    }
    if last:
        before = writes[:-1]
        ways["torn"] = content_of(file, [*before, (at, last[: len(last) // 2])])
        ways["garbled"] = content_of(file, [*before, (at, b"\xa5" * len(last))])
        ways["zeros"] = content_of(file, [(a, bytes(len(d)) if d else d) for a, d in writes])
    return ways


def crash_states(ops: Sequence[Op]) -> Iterator[CrashState]:
    """Each different state that a power cut after any of the operations may leave, once."""
    disk, seen = _Disk(), set[tuple[object, ...]]()
    for number, op in enumerate(ops):
        disk.apply(op)
        if op.what == "B":
            continue
        said = tuple(disk.said)
        for way, tree in _left(disk):
            key = (said, _key(tree))
            if key not in seen:
                seen.add(key)
                yield CrashState(tree, said, f"after {number} {op.what}, {way}")


def _key(tree: Tree) -> tuple[object, ...]:
    return tuple(
        (name, hash(content) if isinstance(content, bytes) else _key(content))
        for name, content in tree.items()
    )


def _left(disk: _Disk) -> Iterator[tuple[str, Tree]]:
    ways: dict[int, dict[str, bytes]] = {}
    for kept in range(len(disk.pending) + 1):
        named = names_after(disk.pending[:kept])
        files = [file for file in _files(disk.top, named) if file.pending]
        for file in files:
            if id(file) not in ways:
                ways[id(file)] = _ways(file)
        for way in ("all", "lost", "no last", "only last", "torn", "garbled", "zeros"):
            chosen = {id(file): ways[id(file)].get(way, file.durable) for file in files}
            yield f"{kept} names, {way}", _tree(disk.top, named, chosen)
        for mixed in itertools.product(("lost", "all"), repeat=min(len(files), MOST_FILES_APART)):
            chosen = {id(file): ways[id(file)]["all"] for file in files}
            chosen |= {id(f): ways[id(f)][way] for f, way in zip(files, mixed, strict=False)}
            yield f"{kept} names, {mixed}", _tree(disk.top, named, chosen)


def _files(folder: _Folder, named: dict[int, dict[str, "_File | _Folder"]]) -> Iterator[_File]:
    for node in named.get(id(folder), folder.durable).values():
        if isinstance(node, _File):
            yield node
        else:
            yield from _files(node, named)


def _tree(
    folder: _Folder, named: dict[int, dict[str, "_File | _Folder"]], chosen: dict[int, bytes]
) -> Tree:
    tree: Tree = {}
    for name, node in sorted(named.get(id(folder), folder.durable).items()):
        if isinstance(node, _File):
            tree[name] = chosen.get(id(node), node.durable)
        else:
            tree[name] = _tree(node, named, chosen)
    return tree


def without_syncs(ops: Sequence[Op], *, of_folders: bool) -> list[Op]:
    """The operations as if the program had never synced its folders, or its files: a planted fault."""
    folders = {op.parts[0] for op in ops if op.what == "B"}
    folders |= {op.parts[1] for op in ops if op.what == "M"}
    return [op for op in ops if op.what != "S" or (op.parts[0] in folders) is not of_folders]
