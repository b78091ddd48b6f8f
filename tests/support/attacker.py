"""A child that plays a model which has taken over its process: ``python -m tests.support.attacker ROLE FOLDER``.

It confines itself as a trial or a model server does, then tries everything in ``ATTACKS`` and prints what came of each
as JSON: the name of the error, or "done". ``FOLDER`` holds ``bundle/model.onnx``, ``secret/identity.key.pem``,
``secret/trust.db`` and ``form/``.
"""

import ctypes
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from agent.runtime.confine import Confined, ServerPlaces, confine_server, confine_trial
from agent.runtime.providers import DEFAULT_PROVIDERS
from agent.runtime.sandbox import leave_network, limit_memory, lock_down

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
PTRACE_ATTACH, CLONE_NEWUSER, MSG_FASTOPEN = 16, 0x10000000, 0x20000000
NUMBERS = {
    "io_uring_setup": 425,
    "pidfd_open": 434,
    "far_too_new": 9999,
    "bpf": 321,
    "userfaultfd": 323,
}


def called(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def call(name: str, *arguments: int) -> None:
    called(_LIBC.syscall(*(ctypes.c_long(value) for value in (NUMBERS[name], *arguments))))


def send_fast_open(port: int) -> None:
    with socket.socket() as made:
        made.sendto(b"x", MSG_FASTOPEN, ("127.0.0.1", port))


def send_datagram(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"x", ("127.0.0.1", port))


def signal_parent_by_pipe() -> None:
    """A pipe's owner is told of new bytes, by a signal that whoever holds the pipe chooses."""
    read, write = os.pipe()
    with os.fdopen(read, "rb"), os.fdopen(write, "wb"):
        fcntl.fcntl(read, fcntl.F_SETOWN, os.getppid())


def attacks(folder: Path, port: int) -> dict[str, Callable[[], object]]:
    secret, parent = folder / "secret", os.getppid()
    return {
        "read the identity key": (secret / "identity.key.pem").read_bytes,
        "read the trust store": (secret / "trust.db").read_bytes,
        "list the state folder": lambda: list(secret.iterdir()),
        "read by a link in its own folder": (folder / "bundle" / "link").read_bytes,
        "read by a hard link made now": lambda: os.link(secret / "trust.db", folder / "bundle" / "hard"),
        "write the trust store": lambda: (secret / "trust.db").open("r+b"),
        "cut the trust store short": lambda: os.truncate(secret / "trust.db", 0),
        "remove the trust store": (secret / "trust.db").unlink,
        "rename the trust store": lambda: (secret / "trust.db").rename(secret / "gone"),
        "lock the agent out of the trust store": lambda: (secret / "trust.db").chmod(0),
        "give the trust store away": lambda: os.chown(secret / "trust.db", 1, 1),
        "write into its own bundle": lambda: (folder / "bundle" / "model.onnx").open("r+b"),
        "write beside its own bundle": lambda: (folder / "new").open("xb"),
        "make a link": lambda: (folder / "new-link").symlink_to("/etc/passwd"),
        "read the parent's memory": lambda: Path(f"/proc/{parent}/mem").open("rb"),
        "read the parent's environment": Path(f"/proc/{parent}/environ").read_bytes,
        "trace the parent": lambda: called(_LIBC.ptrace(PTRACE_ATTACH, parent, 0, 0)),
        "kill the parent": lambda: os.kill(parent, signal.SIGKILL),
        "kill the parent's group": lambda: os.killpg(os.getpgid(parent), signal.SIGKILL),
        "kill the parent by a pipe": signal_parent_by_pipe,
        "hold the parent": lambda: call("pidfd_open", parent, 0),
        "take the parent's processor time": lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (1, 1)),
        "slow the parent": lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
        "fork": os.fork,
        "run a program": lambda: subprocess.run(["/bin/true"], check=True),
        "become another program": lambda: os.execv("/bin/true", ["true"]),
        "connect": lambda: socket.create_connection(("127.0.0.1", port), 5),
        "connect by the first bytes": lambda: send_fast_open(port),
        "send a datagram": lambda: send_datagram(port),
        "make a raw socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "make a namespace": lambda: called(_LIBC.unshare(CLONE_NEWUSER)),
        "mount": lambda: called(_LIBC.mount(b"none", b"/mnt", b"tmpfs", 0, None)),
        "load a program into the kernel": lambda: call("bpf", 0, 0, 0),
        "queue calls past the filter": lambda: call("io_uring_setup", 1, 0),
        "stop the kernel at a page": lambda: call("userfaultfd", 0),
        "use a call newer than the filter": lambda: call("far_too_new"),
        "hide when the trust store changed": lambda: os.utime(secret / "trust.db", (0, 0)),
    }  # fmt: skip


def trial_attacks() -> dict[str, Callable[[], object]]:
    """What only a trial is kept from: it needs less than a server."""
    return {
        "make a socket": socket.socket,
        "make a pair of sockets": socket.socketpair,
        "allocate more than it may": lambda: bytearray(4 << 30),
        "allocate shared memory, which is not counted": lambda: mmap.mmap(-1, 4 << 30),
        "keep memory in a nameless file": lambda: os.memfd_create("hoard"),
    }


def needs() -> dict[str, Callable[[], object]]:
    """What an honest child does all the time."""
    thread = threading.Thread(target=lambda: None)
    return {
        "start a thread": lambda: (thread.start(), thread.join()),
        "read its own status": Path("/proc/self/status").read_bytes,
        "import a library": lambda: __import__("numpy"),
        "signal itself": lambda: os.kill(os.getpid(), 0),
        "see its own limits": lambda: resource.getrlimit(resource.RLIMIT_AS),
        "read random bytes": Path("/dev/urandom").open("rb").close,
    }


HARMLESS = (
    "read the identity key",
    "list the state folder",
    "read by a link in its own folder",
    "read the parent's environment",
    "run a program",
    "connect",
    "hold the parent",
    "make a socket",
    "keep memory in a nameless file",
)
"""What may come through in a child that is not confined."""


def attempt(attack: Callable[[], object]) -> str:
    try:
        attack()
    except BaseException as error:  # noqa: BLE001 (whatever stops it is the result)
        return type(error).__name__
    return "done"


def main(role: str, folder: Path, port: int) -> None:
    if role == "free":
        tried = attacks(folder, port) | trial_attacks()
        results = {name: attempt(tried[name]) for name in HARMLESS}
        sys.stdout.write(json.dumps({"attacks": results}) + "\n")
        return
    lock_down(1 << 20 if role == "form" else 0)
    bundle = folder / "bundle"
    if role == "server":
        confined: Confined = confine_server(ServerPlaces((bundle,)), DEFAULT_PROVIDERS)
        tried = attacks(folder, port)
    else:
        form = folder / "form" if role == "form" else None
        confined = confine_trial(
            bundle, DEFAULT_PROVIDERS, keep_in=form, network_left=leave_network()
        )
        limit_memory(64 << 20)
        tried = attacks(folder, port) | trial_attacks()
    results = {name: attempt(attack) for name, attack in tried.items()}
    wanted = needs() | {"read its bundle": (bundle / "model.onnx").read_bytes}
    if role == "form":
        wanted["write its saved form"] = lambda: (folder / "form" / "stage").write_bytes(b"x")
    answer = {
        "confined": confined.measures(),
        "attacks": results,
        "needs": {name: attempt(need) for name, need in wanted.items()},
    }
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # an attack that came through may have left anything


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
