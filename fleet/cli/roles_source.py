"""Where a command finds the roles that people sign: the running fleet manager, or a fleet folder that stands still.

Rules kept here: a folder is used under its lock, so that no fleet manager signs in it at the same time; what is
handed in is checked the same way in both places.
"""

import base64
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tuf.api.exceptions import RepositoryError

from fleet.api.publish import take_over_role
from fleet.artifacts.folder import FolderArtifacts
from fleet.cli.client import FleetClient
from fleet.config import load_config
from fleet.errors import ConfigError, ConflictError, ServerError
from fleet.home import Home, home_of
from fleet.repository import Repository
from fleet.repository.configured import online_keys
from fleet.repository.request import Chain, SigningRequest, chain_of
from fleet.repository.roles import EMERGENCY, to_bytes
from fleet.store import open_store
from fleet.store.engine import Store

__all__ = ["FolderRoles", "Roles", "ServerRoles", "hand_in", "published_roles"]


class Roles(Protocol):
    """What is published of the roles, and where the next version is handed in."""

    def chain(self, role: str) -> Chain:
        """What is published, as far as this role rests on it.

        Raises:
            RequestError: there is no such role. FleetError: it cannot be read.
        """
        ...

    def take(self, request: SigningRequest) -> bool:
        """Hand in a request that enough keys have signed; whether that changed anything.

        Raises:
            FleetError: it is not acceptable.
        """
        ...


class ServerRoles:
    """A running fleet manager's."""

    def __init__(self, client: FleetClient) -> None:
        self._client = client

    def chain(self, role: str) -> Chain:
        """As :class:`Roles` has it."""
        found = self._client.get_json("/v1/repository/roles")["roots"]
        roots = [json.dumps(root).encode() for root in found]
        return _chain(
            role, roots, lambda name: self._client.get_bytes(f"/v1/repository/roles/{name}")
        )

    def take(self, request: SigningRequest) -> bool:
        """As :class:`Roles` has it."""
        body = {
            "metadata": _base64(to_bytes(request.metadata)),
            "companions": {
                name: _base64(to_bytes(metadata)) for name, metadata in request.companions.items()
            },
            "manifests": [_base64(raw) for raw in request.manifests.values()],
            "attestations": [
                _base64(raw) for raws in request.attestations.values() for raw in raws
            ],
        }
        answer: dict[str, Any] = self._client.post_json(
            f"/v1/repository/roles/{request.role}", body
        )
        return bool(answer["changed"])


@dataclass(frozen=True, slots=True)
class FolderRoles:
    """A fleet folder's, in which no fleet manager runs."""

    repository: Repository
    artifacts: FolderArtifacts
    store: Store
    now_s: Callable[[], float] = field(default=time.time)

    def chain(self, role: str) -> Chain:
        """As :class:`Roles` has it."""
        return _chain(role, self.repository.roots(), self.repository.role_metadata)

    def take(self, request: SigningRequest) -> bool:
        """As :class:`Roles` has it."""
        companions: Mapping[str, bytes] = {
            name: to_bytes(metadata) for name, metadata in request.companions.items()
        }
        raw = to_bytes(request.metadata)
        manifests = request.manifests.values()
        attestations = [raw for raws in request.attestations.values() for raw in raws]
        return take_over_role(self, request.role, raw, companions, manifests, attestations).changed


@contextlib.contextmanager
def published_roles(server: str = "") -> Iterator[Roles]:
    """The fleet manager that is named, else the fleet folder's own, else the folder itself.

    Args:
        server: address of a fleet manager; empty to look for one.

    Raises:
        ConfigError: neither is there. FleetError: it cannot be reached, or the folder cannot be read.
    """
    home = Home(home_of(None))
    with contextlib.ExitStack() as stack:
        named = bool(server or os.environ.get("MUSTER_SERVER"))
        if not named and home.config.exists():
            try:
                stack.enter_context(home.locked())
            except ConfigError:
                if not home.run_file.exists():
                    raise  # somebody holds the folder and does not say where to ask: say so, do not guess
            else:
                store = stack.enter_context(contextlib.closing(open_store(home.database)))
                artifacts = FolderArtifacts(home.artifacts)
                keys = online_keys(home, load_config(home.config).keys)
                yield FolderRoles(Repository(home.path, artifacts.manifest, keys), artifacts, store)
                return
        yield ServerRoles(stack.enter_context(FleetClient(server)))


def hand_in(roles: Roles, request: SigningRequest) -> bool:
    """Publish a request that enough keys have signed; whether that changed anything.

    Raises:
        ConflictError: something else was published since it was made. FleetError: it is not acceptable.
    """
    base = roles.chain(request.role).base
    if base.signed_bytes == request.metadata.signed_bytes:
        return False
    if base.signed_bytes != request.chain.base.signed_bytes:
        again = f"`fleet key request {request.role}`"
        if request.manifests:
            again = "`fleet bundle publish`"
        elif request.role == EMERGENCY:
            again = "`fleet bundle block`, or whichever command made it,"
        raise ConflictError(
            f"this signing request is outdated: it was made on top of {request.role} version "
            f"{request.chain.base.signed.version}, and version {base.signed.version} is published. Make it "
            f"anew with {again}, and have that signed"
        )
    return roles.take(request)


def _chain(role: str, roots: Any, get: Callable[[str], bytes]) -> Chain:
    try:
        return chain_of(role, roots, get)
    except RepositoryError as error:
        raise ServerError(f"the published metadata cannot be read: {error}") from error


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
