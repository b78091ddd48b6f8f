"""The loaded versions of one model as one value, and who of them answers what.

Rules kept here:

- The value never changes: a registry makes a new one and replaces the old. What changes is the versions themselves,
  and only under the registry's lock.
- A request that names no version is answered by the active one, or by an arm when its caller belongs to the arm.
- A request that names a version reaches the active one, one that has been active, or an arm; never a shadow, and never
  a candidate or what is on standby.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field

from agent.errors import DeviceError
from agent.runtime.errors import NotReadyError, UnknownServableError
from agent.runtime.routing import UNROUTABLE, Asker, Role, Share, routed_to_arm, routing_value
from agent.runtime.servable import ANSWERING, Beside, Servable, ServableState

__all__ = ["Hold", "LoadedModel", "beside_of", "chosen", "named", "take_part"]


@dataclass(frozen=True, slots=True)
class Hold:
    """A model without a version, until the next one answers or the time is over."""

    until_s: float
    ended: "Future[None]" = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model's loaded versions, newest last, the one that answers and the one that takes part beside it."""

    active: Servable | None = None
    loaded: tuple[Servable, ...] = ()
    hold: Hold | None = None
    beside: Beside | None = None

    def find(self, sha256: str) -> Servable | None:
        """The loaded version with this manifest digest."""
        return next((servable for servable in self.loaded if servable.sha256 == sha256), None)


def chosen(model: LoadedModel, asker: Asker | None) -> Servable | None:
    """Who answers a request that names no version."""
    beside, active = model.beside, model.active
    if beside is None or asker is None or active is None:
        return active
    share = beside.share
    if share.role is not Role.ARM:
        return active
    value = routing_value(share, asker)
    if value is None:
        active.counters.noted(UNROUTABLE)
        return active
    return beside.servable if routed_to_arm(share, value) else active


def beside_of(model: LoadedModel, name: str, share: Share) -> Beside:
    """Who takes part as ``share`` says: who does already, where only the share is another.

    Raises:
        DeviceError: it is not loaded, or is the active one.
    """
    servable = model.find(share.manifest_sha256)
    what = f"version {share.manifest_sha256[:12]} of model {name!r}"
    if servable is None:
        raise DeviceError(f"{what} is not loaded, so it cannot take part as {share.role}; load it")
    if servable is model.active:
        raise DeviceError(
            f"{what} is the one that answers, so it cannot take part beside itself as {share.role}"
        )
    past = model.beside
    if past is not None and past.servable is servable and past.share.role is share.role:
        past.share = share
        return past
    return Beside(servable, share)


def take_part(servable: Servable, role: Role | None) -> None:
    """Give a version the state and the counters of its role; None: it takes no part any more."""
    waiting = ServableState.PREVIOUS if servable.answered_before else ServableState.CANDIDATE
    if role is None:
        servable.state = waiting
    elif role is Role.STANDBY:
        # What was active goes on answering requests that name its version.
        servable.state = waiting if servable.answered_before else ServableState.STANDBY
    else:
        servable.state = ServableState(role)
    servable.take_role("" if role is None or role is Role.STANDBY else role)


def named(model: LoadedModel, name: str, version: str) -> Servable:
    """The version that answers under this name: the active one first, then the newest of the others.

    Raises:
        UnknownServableError: none has this name. NotReadyError: it does not answer.
    """
    found = [servable for servable in model.loaded if servable.manifest.version == version]
    if not found:
        raise UnknownServableError(
            f"there is no version {version!r} of model {name!r} on this device"
        )
    if model.active in found:
        assert model.active is not None
        return model.active
    answering = [servable for servable in found if servable.state in ANSWERING]
    if not answering:
        raise NotReadyError(f"version {version!r} of model {name!r} is loaded but not active yet")
    return answering[-1]
