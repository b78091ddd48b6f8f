"""What each child that runs models may still do, and the taking away of all else. Linux only.

Rules kept here:

- A trial reads its bundle, Python and the system's libraries, and nothing else: no keys, no trust store, no journal. It
  writes nowhere, or only into the folder its saved form is made in. It starts nothing and reaches nobody.
- The model server reads bundles and saved forms besides, writes nothing, and answers on its places; it calls nobody.
- Order: privileges, files, calls. Each takes away what could undo the one before.
- What the kernel does not have is not assumed: ``Confined`` says what is in force, and travels with the trial's
  measures and the server's first message.
"""

import contextlib
import ctypes
import json
import os
import site
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import agent
from agent.runtime.calls import refused_to_server, refused_to_trial
from agent.runtime.landlock import Grants, restrict_files
from agent.runtime.providers import CPU
from agent.runtime.sandbox import leave_network, lock_down, no_new_privileges
from agent.runtime.seccomp import refuse_calls

__all__ = ["Confined", "ServerPlaces", "confine_server", "confine_trial", "drop_privileges", "main"]

_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _CLEAR_AMBIENT = 24, 47, 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITIES: Final = 64
_NET_BIND_SERVICE: Final = 10

_SYSTEM: Final = (
    "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime",
    "/sys/devices", "/sys/bus", "/sys/class", "/sys/kernel/mm/transparent_hugepage", "/proc/self",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory",
    "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
"""Libraries, time zone, what the machine is, and a process's own entry in ``/proc``."""
_SINK: Final = Path("/dev/null")
_DEVICES: Final = Path("/dev")


@dataclass(frozen=True, slots=True)
class Confined:
    """What is in force. ``files``: the Landlock ABI, 0 for none; ``calls``: the filter of system calls;
    ``privileges``: every capability is gone; ``network``: an empty network namespace, or no call that reaches one."""

    files: int
    calls: bool
    privileges: bool
    network: bool

    def measures(self) -> dict[str, float]:
        """As numbers, for ``TrialReport.measures``."""
        return {
            "network_isolated": float(self.network),
            "files_confined": float(self.files),
            "calls_confined": float(self.calls),
            "privileges_dropped": float(self.privileges),
        }


@dataclass(frozen=True, slots=True)
class ServerPlaces:
    """``read``: folders of bundles and saved forms; ``sockets``: folders of unix sockets that are made later."""

    read: tuple[Path, ...]
    sockets: tuple[Path, ...] = ()


def confine_trial(
    bundle: Path, providers: Sequence[str], *, keep_in: Path | None = None, network_left: bool = False
) -> Confined:  # fmt: skip
    """For a child that tries the bundle in ``bundle``; ``keep_in``: the one folder it may write in. Before its first
    thread. ``network_left``: it is in an empty network namespace."""
    privileges = drop_privileges()
    _keep_own_entry()
    read, names = _runtime()
    grants = Grants(
        read=(*read, bundle),
        list_only=names,
        keep_in=(keep_in,) if keep_in is not None else (),
        devices=_devices(providers),
    )
    files = restrict_files(grants)
    calls = refuse_calls(refused_to_trial(os.getpid()))
    return Confined(files, calls, privileges, network_left or calls)


def confine_server(places: ServerPlaces, providers: Sequence[str]) -> Confined:
    """For the model server, before its first thread. It may still bind the port it was given, even a low one."""
    no_new_privileges()
    privileges = drop_privileges(keep=frozenset({_NET_BIND_SERVICE}))
    _keep_own_entry()
    read, names = _runtime()
    grants = Grants(
        read=(*read, *places.read),
        list_only=names,
        devices=_devices(providers),
        make_sockets=places.sockets,
        bind_tcp=True,
    )
    files = restrict_files(grants)
    return Confined(files, refuse_calls(refused_to_server(os.getpid())), privileges, False)


def drop_privileges(keep: frozenset[int] = frozenset()) -> bool:
    """Give up every capability but those in ``keep``, and the way back to them. Returns whether they are gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in set(range(_CAPABILITIES)) - keep:
        libc.prctl(
            _PR_CAPBSET_DROP, capability, 0, 0, 0
        )  # refused to who has none: nothing to drop
    libc.prctl(_PR_CAP_AMBIENT, _CLEAR_AMBIENT, 0, 0, 0)
    kept = sum(1 << capability for capability in keep)
    held = _capabilities(libc)
    # effective, permitted and inheritable of the low 32 capabilities, then of the high ones
    left = (ctypes.c_uint32 * 6)(held[0] & kept, held[1] & kept, 0, 0, 0, 0)
    libc.capset(_capability_header(), left)
    return not any(now & ~allowed for now, allowed in zip(_capabilities(libc), left, strict=True))


def _capability_header() -> "ctypes.Array[ctypes.c_uint32]":
    return (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)


def _capabilities(libc: ctypes.CDLL) -> "ctypes.Array[ctypes.c_uint32]":
    """What this thread holds; everything, where the system does not say."""
    held = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
    libc.capget(_capability_header(), held)
    return held


def _keep_own_entry() -> None:
    """Held open to the end: the kernel may forget an entry of ``/proc`` that nobody holds, and what it makes in its
    place has no grant."""
    with contextlib.suppress(OSError):  # no /proc: nothing of it is read either
        os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)


def _devices(providers: Sequence[str]) -> tuple[Path, ...]:
    """An accelerator is reached through its device files, whose names only its driver knows."""
    return (_SINK,) if tuple(providers) == (CPU,) else (_DEVICES,)


def _runtime() -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """What Python and its libraries are read from, and the folders that are looked through for modules."""
    installed = sysconfig.get_paths()
    whole = {Path(name) for name in _SYSTEM}
    whole |= {Path(installed[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    whole |= {Path(name) for name in site.getsitepackages()}
    whole |= {Path(prefix) / "lib" for prefix in (sys.prefix, sys.base_prefix)}
    whole |= {Path(name) for name in _library_folders(os.environ)}
    # Where the project is run from its source: its packages, and not what else lies beside them.
    source = Path(agent.__file__).parents[1]
    whole |= {source / name for name in ("agent", "fleet", "protos")}
    listed = {Path(name) for name in sys.path if name}
    return tuple(sorted(whole)), tuple(sorted(listed))


def _library_folders(environment: Mapping[str, str]) -> tuple[str, ...]:
    folders = environment.get("LD_LIBRARY_PATH", "").split(":")
    return tuple(name for name in folders if name.startswith("/") and name != "/")


def main() -> int:
    """Confine this process as a trial's and print what is in force, as JSON. For ``fleet-agent doctor``."""
    lock_down()
    confined = confine_trial(Path("/nonexistent"), (CPU,), network_left=leave_network())
    sys.stdout.write(json.dumps(confined.measures()) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
