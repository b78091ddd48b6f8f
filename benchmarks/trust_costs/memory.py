"""What trust adds to the memory of an agent: the same process with and without it.

``python -m benchmarks.trust_costs.memory WITH FOLDER`` is that process: it imports what the supervisor needs for
everything else, and with ``with`` also reads a trust store, verifies a pack by the TUF client, commits and decides.
Then it says what it holds.
"""

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

__all__ = ["Memory", "measure", "prepare"]

ROOT: Final = Path(__file__).resolve().parents[2]
OTHERS: Final = (
    "agent.adapters.grpc_link", "agent.adapters.mqtt_link", "agent.adapters.journal", "agent.adapters.piece_store",
    "agent.adapters.slot_store", "agent.adapters.enrol_link", "agent.adapters.spool", "agent.health.spool",
    "agent.identity", "agent.identity.keeper", "agent.delivery", "agent.config_file", "agent.update.updater",
)  # fmt: skip
"""What a supervisor imports for the rest of its work; none of it brings the TUF client."""
_KB: Final = 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, medians of several processes. ``own``: what no file backs or what was written to."""

    without_rss: int
    with_rss: int
    without_own: int
    with_own: int

    @property
    def added_rss(self) -> int:
        return self.with_rss - self.without_rss

    @property
    def added_own(self) -> int:
        return self.with_own - self.without_own


def prepare(folder: Path) -> None:
    """A fleet's metadata and a pack as files, so that what is measured need not make them."""
    from tests.support.signed_fleet import SignedFleet, directive_for

    fleet = SignedFleet(folder / "fleet")
    release = fleet.publish()
    first = fleet.direct(directive_for(release, percent_bp=1))
    served = folder / "served"
    served.mkdir()
    for path in (folder / "fleet" / "repository" / "metadata").glob("*.json"):
        (served / path.name).write_bytes(path.read_bytes())
    (folder / "root.json").write_bytes(fleet.root)
    (folder / "pack").write_bytes(first)
    (folder / "now").write_text(str(fleet.now_s), encoding="ascii")


def measure(folder: Path, rounds: int = 5) -> Memory:
    """Processes with and without trust, in turn."""
    prepare(folder)
    found: dict[str, list[dict[str, int]]] = {"without": [], "with": []}
    for number in range(rounds):
        for how, seen in found.items():
            command = [
                sys.executable,
                "-m",
                "benchmarks.trust_costs.memory",
                how,
                str(folder),
                str(number),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT)
            seen.append(json.loads(done.stdout))
    middle = {
        how: {key: int(median(one[key] for one in seen)) for key in ("rss", "own")}
        for how, seen in found.items()
    }
    return Memory(
        middle["without"]["rss"], middle["with"]["rss"], middle["without"]["own"], middle["with"]["own"]
    )  # fmt: skip


class _Served:
    """Metadata out of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get_metadata(self, name: str) -> bytes | None:
        path = self._folder / name
        return path.read_bytes() if path.exists() else None

    def get_target(self, path: str, sha256: str) -> bytes | None:
        return None


def _trust(folder: Path, store_path: Path) -> Any:
    """Everything that a device has of trust, used once; what it goes on holding."""
    from agent.adapters.trust_store import SqliteTrustStore
    from agent.trust import DeviceFacts, World, decide_in
    from agent.trust.refresh import TrustRefresher
    from agent.trust_view import read_view

    now_s = float((folder / "now").read_text(encoding="ascii"))
    store = SqliteTrustStore(store_path)
    refresher = TrustRefresher((folder / "root.json").read_bytes(), device_class="cam")
    state = refresher.refresh(
        store.load(), _Served(folder / "served"), (folder / "pack").read_bytes(), now_s
    )
    store.save(state)
    view = read_view(state)
    world = World(view.releases, DeviceFacts("cam-7", "cam", "x86_64"), {}, now_s)
    decisions = decide_in(world, view.directives, {})
    assert decisions
    return store, state, view, refresher, decisions


def _main(how: str, folder: Path, number: str) -> None:
    for name in OTHERS:
        importlib.import_module(name)
    assert "tuf" not in sys.modules, "the comparison needs a process without it"
    held = _trust(folder, folder / f"trust-{number}.db") if how == "with" else None
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * _KB for line in lines[1:]}
    print(json.dumps({"rss": found["Rss"], "own": found["Anonymous"]}))
    del held


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
