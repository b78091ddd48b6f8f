"""Where the front ends listen: TCP on the loopback, and unix sockets.

Rules kept here:

- A place is ours alone or the start fails: another server's socket is never taken over, one that a
  dead server left behind is.
- A unix socket is for its owner and group (mode 0660): who may ask is decided by the folder it is
  in.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent.trust.loopback import require_loopback

__all__ = [
    "BACKLOG",
    "bind_tcp",
    "bind_unix",
    "claim_unix",
    "private_to_group",
    "remove_sockets",
    "split_address",
]

BACKLOG: Final = 512
_CONNECT_S: Final = 1.0


def split_address(listen: str, what: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, on the loopback.

    Raises:
        ConfigError: it is not on the loopback. ValueError: the port is no number.
    """
    host, _, port = listen.rpartition(":")
    require_loopback(host, what)
    return host, int(port)


def bind_tcp(listen: str, what: str) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: not on the loopback. RuntimeError: the port cannot be had.
    """
    host, port = split_address(listen, what)
    family, kind, number, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM
    )[0]
    bound = socket.socket(family, kind, number)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise RuntimeError(
            f"the port {port} is taken or not allowed; choose another in {what}"
        ) from error
    return bound


def claim_unix(path: str, what: str) -> None:
    """Make sure that a socket can be made at ``path``: a dead server's is removed.

    Raises:
        RuntimeError: somebody answers there, or something else is there.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise RuntimeError(f"{what} = {path!r} cannot be used: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise RuntimeError(f"{what} = {path!r} is there and no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except OSError as error:  # full, forbidden, too slow: somebody may well be there
            raise RuntimeError(f"{what} = {path!r} is taken: {error.strerror or error}") from error
    raise RuntimeError(f"{what} = {path!r} is taken: another server answers there")


def bind_unix(path: str, what: str) -> socket.socket:
    """A listening socket at ``path``.

    Raises:
        RuntimeError: it cannot be had.
    """
    claim_unix(path, what)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with private_to_group():
            bound.bind(path)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise RuntimeError(
            f"{what} = {path!r} cannot be made: {error.strerror or error}. Its folder must exist and be the agent's"
        ) from error
    return bound


@contextmanager
def private_to_group() -> Iterator[None]:
    """Sockets made meanwhile have mode 0660. For the whole process, so only before its threads
    start."""
    before = os.umask(0o117)
    try:
        yield
    finally:
        os.umask(before)


def remove_sockets(paths: Sequence[str]) -> None:
    """Leave no file behind."""
    for path in paths:
        with contextlib.suppress(OSError):  # gone, or not ours any more: found at the next start
            Path(path).unlink(missing_ok=True)
