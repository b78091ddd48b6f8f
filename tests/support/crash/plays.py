"""What is done to each durable store under the recorder, and what must hold of what is left.

A play says ``begin N`` before each change and ``done N`` once the store has promised it. Afterwards the store must hold
the newest change that was promised or one that had begun since: never a mixture, never one that is older.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol

from agent.adapters.durable import make_folder, write_durable
from agent.adapters.journal import SqliteJournal
from agent.adapters.piece_store import FilePieceStore
from agent.adapters.slot_store import FolderSlotStore
from agent.adapters.spool import SqliteSpool
from agent.adapters.trust_store import SqliteTrustStore
from agent.bundle import BundleFile, Manifest, Piece, Stage, TensorSpec, manifest_sha256
from agent.trust import TrustState
from agent.update.journal import Deployment, Installed, JournalContent, ModelRecord, Slots
from agent.update.states import Phase
from protos import report_pb2

__all__ = ["PLAYS", "Play", "ViolatedError", "allowed"]

Say = Callable[[str], None]


class ViolatedError(AssertionError):
    """A store holds what it must not."""


class Play(Protocol):
    """One store. ``run`` and ``check`` are given the folder that is recorded."""

    def run(self, folder: Path, say: Say) -> None: ...

    def check(self, folder: Path, said: Sequence[str]) -> None:
        """Raises ViolatedError, or what the store raises when it cannot be used any more."""
        ...


def allowed(said: Sequence[str]) -> range:
    """Numbers of the changes that may be the newest there is; 0 is none."""
    done = max((int(text.removeprefix("done ")) for text in said if "done" in text), default=0)
    begun = max((int(text.removeprefix("begin ")) for text in said if "begin" in text), default=0)
    return range(done, max(begun, done) + 1)


def require(found: object, states: Sequence[object], said: Sequence[str]) -> None:
    """``states[n]``: what the store holds after change ``n``."""
    if not any(found == states[number] for number in allowed(said)):
        which = [number for number, state in enumerate(states) if state == found]
        held = f"state {which[0]}" if which else f"none of its states: {found!r:.300}"
        raise ViolatedError(f"holds {held} where one of {list(allowed(said))} was due")


class TrustPlay:
    """Three saves, closed and opened in between, so that a checkpoint is among the operations."""

    synchronous: ClassVar[str] = "FULL"
    states = (
        TrustState(),
        TrustState({"1.root.json": b"r" * 300, "timestamp.json": b"1" * 90}, 10.0, {"cam/m": 1}),
        TrustState({"1.root.json": b"r" * 300, "timestamp.json": b"2" * 900}, 20.5, {"cam/m": 2}),
        TrustState({"1.root.json": b"r" * 300, "snapshot.json": b"3" * 40}, 30.0, {"cam/m": 2}),
    )

    def run(self, folder: Path, say: Say) -> None:
        store = self._open(folder)
        for number in (1, 2, 3):
            say(f"begin {number}")
            store.save(self.states[number])
            say(f"done {number}")
            if number == 2:
                store.close()
                store = self._open(folder)
        store.close()

    def _open(self, folder: Path) -> SqliteTrustStore:
        store = SqliteTrustStore(folder / "trust.db")
        store.load()
        if self.synchronous != "FULL":
            assert store._db is not None
            store._db.execute(f"PRAGMA synchronous={self.synchronous}")
        return store

    def check(self, folder: Path, said: Sequence[str]) -> None:
        store = SqliteTrustStore(folder / "trust.db")
        found = store.load()
        store.close()
        require(found, self.states, said)
        if found.damage:
            raise ViolatedError(f"a power cut is taken for damage: {found.damage}")


class UnsyncedTrustPlay(TrustPlay):
    """A planted fault: SQLite promises before the disk has."""

    synchronous = "OFF"


def _records() -> tuple[ModelRecord, ...]:
    old, new = (
        Installed(c * 64, v, f"bundles/pi/m-{v}", "r1") for c, v in (("a", "1"), ("b", "2"))
    )
    going = Deployment("d1", "r2", "m", new.bundle, new.manifest_sha256, 100, 1.0, Phase.FETCH)
    return (
        ModelRecord("m", Slots(old)),
        ModelRecord("m", Slots(old), going),
        ModelRecord("m", Slots(old), replace(going, phase=Phase.SWAP)),
        ModelRecord("m", Slots(new, old)),
    )


class JournalPlay:
    """A deployment from its first phase to its commit."""

    def run(self, folder: Path, say: Say) -> None:
        journal = SqliteJournal(folder / "journal.db")
        for number, record in enumerate(_records(), 1):
            say(f"begin {number}")
            journal.save(record)
            say(f"done {number}")
            if number == 2:
                journal.close()
                journal = SqliteJournal(folder / "journal.db")
        journal.close()

    def check(self, folder: Path, said: Sequence[str]) -> None:
        journal = SqliteJournal(folder / "journal.db")
        found = journal.load()
        journal.close()
        states = [JournalContent(), *(JournalContent({"m": record}) for record in _records())]
        require(found, states, said)


class SpoolPlay:
    """Reports come in; what was kept is kept."""

    def run(self, folder: Path, say: Say) -> None:
        spool = SqliteSpool(folder / "spool.db")
        for number in (1, 2, 3):
            say(f"begin {number}")
            inventory = report_pb2.Inventory(device_class="pi" * number)
            spool.put(
                report_pb2.Report(device_id="d", boot_id="b", seq=number, inventory=inventory)
            )
            say(f"done {number}")
            if number == 2:
                spool.close()
                spool = SqliteSpool(folder / "spool.db")
        spool.close()

    def check(self, folder: Path, said: Sequence[str]) -> None:
        spool = SqliteSpool(folder / "spool.db")
        found = [report.seq for report in spool.batch()]
        spool.close()
        # An inventory replaces the one before it, so what counts is the newest.
        require(max(found, default=0), range(4), said)


PIECES = tuple(bytes([number]) * (700 * number) for number in (1, 2))


class PiecePlay:
    """Two pieces arrive in parts. One that is there is whole, and one that was promised is there."""

    def run(self, folder: Path, say: Say) -> None:
        store = FilePieceStore(folder)
        for number, piece in enumerate(PIECES, 1):
            digest = hashlib.sha256(piece).hexdigest()
            say(f"begin {number}")
            while (at := store.partial_size(digest)) < len(piece):
                store.append(digest, at, piece[at : at + 400])
            store.complete(digest, len(piece))
            say(f"done {number}")

    def check(self, folder: Path, said: Sequence[str]) -> None:
        store = FilePieceStore(folder)
        for number, piece in enumerate(PIECES, 1):
            digest = hashlib.sha256(piece).hexdigest()
            if store.has(digest) and store.read(digest) != piece:
                raise ViolatedError(f"piece {number} is there and is not whole")
            if not store.has(digest) and number <= allowed(said)[0]:
                raise ViolatedError(f"piece {number} was promised and is gone")


CONTENTS = {"model.onnx": PIECES[0] + PIECES[1], "sub/labels.txt": PIECES[0]}


def _manifest() -> tuple[Manifest, bytes]:
    def cut(data: bytes) -> tuple[Piece, ...]:
        pieces = (PIECES[0], PIECES[1]) if len(data) > len(PIECES[0]) else (PIECES[0],)
        return tuple(Piece(hashlib.sha256(one).hexdigest(), len(one)) for one in pieces)

    files = tuple(
        BundleFile(name, len(data), hashlib.sha256(data).hexdigest(), cut(data))
        for name, data in CONTENTS.items()
    )
    tensor = TensorSpec("x", "FP32", (-1,))
    manifest = Manifest(
        model="m", version="1", device_class="pi", created_s=1, files=files,
        stages=(Stage("s", "model.onnx", (("x", "x"),), (("y", "y"),)),),
        inputs=(tensor,), outputs=(replace(tensor, name="y"),),
    )  # fmt: skip
    return manifest, manifest.to_bytes()


class SlotPlay:
    """A slot is staged, staged again over itself, and removed. What bears its name is whole."""

    def run(self, folder: Path, say: Say) -> None:
        pieces = FilePieceStore(folder / "pieces")
        for piece in PIECES:
            digest = hashlib.sha256(piece).hexdigest()
            if not pieces.has(digest):
                pieces.discard(digest)
                pieces.append(digest, 0, piece)
                pieces.complete(digest, len(piece))
        slots = FolderSlotStore(make_folder(folder / "slots"))
        manifest, raw = _manifest()
        say("begin 1")
        slots.stage(manifest, raw, pieces)
        say("done 1")
        say("begin 2")
        slots.keep_only(frozenset())
        say("done 2")

    def check(self, folder: Path, said: Sequence[str]) -> None:
        slots = FolderSlotStore(folder / "slots")
        digest = manifest_sha256(_manifest()[1])
        there = (folder / "slots" / digest).is_dir()
        if there:
            slots.verify(digest)
        require(int(there), (0, 1, 0), said)


class FilePlay:
    """What ``write_durable`` promises, as keys and certificates rely on it."""

    states = (None, b"one" * 100, b"two" * 3000)

    def run(self, folder: Path, say: Say) -> None:
        for number in (1, 2):
            say(f"begin {number}")
            content = self.states[number]
            assert content is not None
            write_durable(folder / "key.pem", content)
            say(f"done {number}")

    def check(self, folder: Path, said: Sequence[str]) -> None:
        path = folder / "key.pem"
        require(path.read_bytes() if path.exists() else None, self.states, said)


PLAYS: dict[str, Play] = {
    "trust": TrustPlay(),
    "trust-unsynced": UnsyncedTrustPlay(),
    "journal": JournalPlay(),
    "spool": SpoolPlay(),
    "pieces": PiecePlay(),
    "slots": SlotPlay(),
    "file": FilePlay(),
}
