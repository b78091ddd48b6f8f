"""One refresh of the signed metadata: the public TUF client between one state and the next.

Rules kept here:

* Every check of the TUF client workflow is python-tuf's; nothing here verifies a signature.
* A refresh is a function of the state, the pack, the source's answers and the time. The client's
  files live in a scratch folder, in memory where the system has a memory file system; what is
  durable is the state that comes out.
* With a pack, the roles that change with every stage come from the pack alone: a refresh that a
  broker caused asks the server for nothing but releases. Without a pack everything comes from the
  source.
* Time is the later of the clock and the state's floor. The floor rises with every verified
  timestamp; only new timestamp keys in a newer root let it fall, because a stolen timestamp key may
  have pushed it into the future. For the same reason these keys let versions fall: what was accepted
  under replaced keys is no measure of what is new.
* An emergency role that has expired is verified and kept all the same: what it blocks stays blocked, and a fleet whose
  holders of that key are away can still be directed. See :mod:`agent.trust.emergency`.
* What was verified before a refusal stays verified: roots, timestamp and snapshot are kept as the
  refusal's ``progress``. Directives and releases advance only together.
"""

import datetime
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, Root, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from agent.errors import DeviceError
from agent.nesting import is_deeper
from agent.trust.emergency import EMERGENCY_PROBE, EMERGENCY_ROLE
from agent.trust.errors import ExpiredError
from agent.trust.limits import TrustLimits
from agent.trust.pack import METADATA_NAME, open_pack
from agent.trust.reading import releases
from agent.trust.refusals import CLIENT_ERRORS, refusal_of
from agent.trust.release import BUNDLE_PREFIX, bundle_path
from agent.trust.scratch import fill, read_back, scratch_folder
from agent.trust.state import TrustState

if TYPE_CHECKING:
    from agent.ports import MetadataSource

__all__ = ["SIGNED_AT_FIELD", "TrustRefresher"]

SIGNED_AT_FIELD: Final = "x-muster-signed-at"
"""Field of the timestamp: when it was signed, in whole seconds since the epoch."""

_BASE: Final = "metadata://"
_HTTP_NOT_FOUND: Final = 404
_LATEST_S: Final = (
    253_402_300_799  # 9999-12-31, the last time the metadata's own format can express
)

# Asking for one path of each kind makes the client load and verify the roles that answer for them;
# releases come first, so that no directive is taken over without the releases it may name.
_PROBES: Final = ("rollouts/-",)
_EMERGENCY: Final = f"{EMERGENCY_ROLE}.json"
_KEPT_ON_REFUSAL: Final = ("timestamp.json", "snapshot.json")


class TrustRefresher:
    """Brings a device's trust state up to date. Blocking; call it from a worker thread.

    Args:
        bootstrap_root: the fleet's root metadata as it was put on the device; all trust starts
            there.
        limits: sizes beyond which nothing is read.
        known_past: a time that is known to be past whatever was signed, in seconds since the epoch: when
            this agent was built, when its own certificate begins.
        device_class: whose releases are read: the role that speaks for this class, and no other. None reads those
            of every class, for a reader that stands for devices of several.
    """

    def __init__(
        self,
        bootstrap_root: bytes,
        limits: TrustLimits | None = None,
        known_past: Callable[[], float] = lambda: 0.0,
        device_class: str | None = None,
    ) -> None:
        self._bootstrap_root = bootstrap_root
        self._limits = limits or TrustLimits()
        self._known_past = known_past
        self._device_class = device_class

    def refresh(
        self, state: TrustState, source: "MetadataSource", pack: bytes | None, now_s: float
    ) -> TrustState:
        """Verify newer metadata and return the state with it.

        Args:
            state: what this device has accepted so far.
            source: where metadata is asked for that the pack does not hold.
            pack: the retained message, or None to ask the source for everything.
            now_s: the clock, in seconds since the epoch.

        Returns:
            The new state. Save it before acting on it.

        Raises:
            RefusedMetadataError: something is not acceptable; its class and ``code`` say what, and
                its ``progress`` is a state to save.
            LinkError: the source cannot be reached.
            DeviceError: there is no room for the scratch folder.
        """
        offered = None if pack is None else open_pack(pack, self._limits)
        state = state.with_time_known(self._known_past())
        try:
            return self._refresh_or_retry(state, source, offered, now_s)
        except OSError as error:
            raise DeviceError(
                f"cannot verify signed metadata, no room for a scratch folder: {error}. Free memory "
                f"or disk space"
            ) from error

    def _refresh_or_retry(
        self,
        state: TrustState,
        source: "MetadataSource",
        offered: Mapping[str, bytes] | None,
        now_s: float,
    ) -> TrustState:
        try:
            return self._refresh_at(state, source, offered, now_s)
        except ExpiredError as error:
            if error.progress is None or not _floor_is_of_replaced_keys(state, error.progress):
                raise
            rotated = replace(error.progress, floor_s=self._known_past())
        # The floor was raised with keys that the newer root has replaced: judge by the clock once,
        # and let the new keys' timestamp set the floor.
        return self._refresh_at(rotated, source, offered, now_s)

    def _refresh_at(
        self,
        state: TrustState,
        source: "MetadataSource",
        offered: Mapping[str, bytes] | None,
        now_s: float,
    ) -> TrustState:
        with scratch_folder() as folder:
            fill(folder, state.files)
            fetcher, updater = _Fetcher(source, offered, self._limits.levels), None
            try:
                updater = self._client(folder, fetcher, state, now_s)
                for path in (*self._release_probes(updater), *_PROBES):
                    updater.get_targetinfo(path)
                lapsed = _ask_emergency(updater, fetcher)
            except CLIENT_ERRORS as error:
                refusal = refusal_of(error, state, now_s)
                if updater is not None:
                    refusal.progress = _progress(state, _verified(updater, read_back(folder)))
                raise refusal from error
            files = _verified(updater, read_back(folder)) | lapsed
        refreshed = replace(state, files=files)
        refreshed = _with_floor(refreshed, (_newest_root(refreshed), *_roles(files)))
        return refreshed.with_floors_raised(releases(refreshed).values())

    def _release_probes(self, updater: Updater) -> Iterator[str]:
        """A path for each release role that is to be read."""
        if self._device_class is not None:
            yield bundle_path(self._device_class, "-", "-")
            return
        updater.refresh()
        delegations = updater._trusted_set.targets.delegations
        for role in ((delegations and delegations.roles) or {}).values():
            yield from (
                path.replace("*", "-")
                for path in role.paths or ()
                if path.startswith(BUNDLE_PREFIX)
            )

    def _client(
        self,
        folder: Path,
        fetcher: "_Fetcher",
        state: TrustState,
        now_s: float,
    ) -> Updater:
        limits = self._limits
        # The client walks from the bootstrap root, and counts the roots after it that are here already.
        held = max(0, len(state.files) - len(_roles(state.files)) - 1)
        config = UpdaterConfig(
            max_root_rotations=limits.root_rotations + held,
            max_delegations=limits.delegations,
            root_max_length=limits.root_bytes,
            timestamp_max_length=limits.timestamp_bytes,
            snapshot_max_length=limits.snapshot_bytes,
            targets_max_length=limits.targets_bytes,
        )
        updater = Updater(
            str(folder),
            _BASE,
            fetcher=fetcher,
            config=config,
            bootstrap=self._bootstrap_root,
        )
        # The client has no public way to be told the time; tests/agent/trust/test_refresh.py guards
        # this attribute.
        updater._trusted_set.reference_time = datetime.datetime.fromtimestamp(
            min(max(state.trusted_now_s(now_s), 0.0), _LATEST_S), tz=datetime.UTC
        )
        return updater


class _Fetcher(FetcherInterface):
    """The client's network: the pack for what it must hold, the source for the rest."""

    def __init__(
        self, source: "MetadataSource", offered: Mapping[str, bytes] | None, levels: int
    ) -> None:
        self._source = source
        self._offered = offered
        self._levels = levels
        self.newest_emergency = b""

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.download_bytes(url, self.unbounded)

    unbounded: Final = 2**63

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """One metadata file, without the temporary file that the base class would make for each.

        Raises:
            DownloadHTTPError: there is no such file.
            DownloadLengthMismatchError: it is longer than ``max_length``.
            ValueError: it is nested deeper than anything that a fleet signs.
            LinkError: the source cannot be reached.
        """
        name = url.removeprefix(_BASE)
        content = self._content(name)
        if content is None:
            raise tuf_errors.DownloadHTTPError(f"{name} is not offered", _HTTP_NOT_FOUND)
        if len(content) > max_length:
            raise tuf_errors.DownloadLengthMismatchError(
                f"{name} is {len(content)} bytes, more than the {max_length} allowed"
            )
        if is_deeper(content, self._levels):
            raise ValueError(f"{name} is nested more than {self._levels} levels deep")
        if _role_of(name) == EMERGENCY_ROLE:
            self.newest_emergency = content
        return content

    def _content(self, name: str) -> bytes | None:
        if not METADATA_NAME.fullmatch(name):
            return None  # a delegation may carry any role name; only ours are ever asked for
        if self._offered is not None:
            if _role_of(name) in _ROLES_IN_PACK:
                return self._offered.get(name)
            if _role_of(name) == EMERGENCY_ROLE and name in self._offered:
                return self._offered[name]
        return self._source.get_metadata(name)


_ROLES_IN_PACK: Final = frozenset({"root", "timestamp", "snapshot", "rollout"})


def _role_of(name: str) -> str:
    """``snapshot`` for ``12.snapshot.json``."""
    return name.removesuffix(".json").rpartition(".")[2]


def _ask_emergency(updater: Updater, fetcher: _Fetcher) -> dict[str, bytes]:
    """Load the emergency role, where there is one; the file that the snapshot names, if it has expired.

    The client checks expiry last: what it calls expired is signed and is the version, length and digest that the
    snapshot names.
    """
    try:
        updater.get_targetinfo(EMERGENCY_PROBE)
    except tuf_errors.ExpiredMetadataError:
        return {_EMERGENCY: fetcher.newest_emergency} if fetcher.newest_emergency else {}
    return {}


def _verified(updater: Updater, found: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that this refresh has verified.

    Others may lie in the folder: of a role that nobody delegates to any more, or a root of a chain
    that the bootstrap root does not lead to.
    """
    trusted = updater._trusted_set
    roots = [f"{version}.root.json" for version in range(1, trusted.root.version + 1)]
    names = [name for name in roots if name in found]
    names += [name for name in _roles(found) if name.removesuffix(".json") in trusted]
    return {name: found[name] for name in names}


def _roles(files: Iterable[str]) -> list[str]:
    """The names of all files but roots."""
    return [name for name in files if not name.endswith(".root.json")]


# --- time -----------------------------------------------------------------------------------------


def _with_floor(state: TrustState, names: Iterable[str]) -> TrustState:
    """The state with its floor raised to the time its verified timestamp was signed at.

    A time later than the expiry of what it was signed with is not believed: that bounds how far
    into the future stolen online keys, or a fleet manager's wrong clock, can push a device.
    """
    signed_at_s = _signed(state.files, "timestamp.json").get(SIGNED_AT_FIELD)
    expires_s = min(_expires_s(state.files, name) for name in names if name != _EMERGENCY)
    if isinstance(signed_at_s, int) and 0 <= signed_at_s <= expires_s:
        return replace(state, floor_s=max(state.floor_s, float(signed_at_s)))
    return state


def _expires_s(files: Mapping[str, bytes], name: str) -> float:
    return datetime.datetime.fromisoformat(_signed(files, name)["expires"]).timestamp()


def _progress(state: TrustState, verified: Mapping[str, bytes]) -> TrustState:
    """The state with the roots, timestamp and snapshot that were verified before a refusal."""
    roots = {name: verified[name] for name in verified if name.endswith(".root.json")}
    later = {name: verified[name] for name in _KEPT_ON_REFUSAL if name in verified}
    kept = {name: state.files[name] for name in _roles(state.files)}
    progress = replace(state, files={**kept, **roots, **later})
    if "timestamp.json" not in later:
        return progress
    return _with_floor(progress, (_newest_root(progress), "timestamp.json"))


def _newest_root(state: TrustState) -> str:
    roots = [name for name in state.files if name.endswith(".root.json")]
    return max(roots, key=lambda name: int(name.partition(".")[0]))


def _floor_is_of_replaced_keys(before: TrustState, after: TrustState) -> bool:
    """Whether the newest root no longer trusts who signed the timestamp that was accepted last.

    That root may have come with this refresh or with an earlier one that got no further.
    """
    if "timestamp.json" not in before.files:
        return False  # nothing was accepted before, so no key has raised the floor
    root: Metadata[Root] = Metadata.from_bytes(after.files[_newest_root(after)])
    accepted: Metadata[Timestamp] = Metadata.from_bytes(before.files["timestamp.json"])
    signed = (accepted.signed_bytes, accepted.signatures)
    return not root.signed.get_verification_result(Timestamp.type, *signed)


def _signed(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The signed part of a file that has been verified."""
    signed: dict[str, Any] = json.loads(files[name])["signed"]
    return signed
