"""What answers requests on a device and what is held beside it, told from the records. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.ports import Sharing
from agent.update.journal import Deployment, Installed, ModelRecord
from agent.update.states import Phase

__all__ = ["ServedBundle", "beside_of", "served_of"]


@dataclass(frozen=True, slots=True)
class ServedBundle:
    """A bundle that answers requests now, or will once the server is back; or one that is held beside it.

    ``role``: "" answers; of what is held beside: "shadow", "arm" or "standby".
    """

    model: str
    version: str
    manifest_sha256: str
    bundle: str
    rollout_id: str
    on_probation: bool = False
    role: str = ""


def served_of(records: Iterable[ModelRecord]) -> tuple[ServedBundle, ...]:
    """What answers requests, one a model, ordered by name."""
    found = []
    for record in sorted(records, key=lambda record: record.model):
        pending = record.deployment
        swapped = pending is not None and pending.phase in (Phase.PROBATION, Phase.COMMIT)
        it = pending.installed if pending is not None and swapped else record.slots.active
        if it is not None:
            found.append(_bundle(record.model, it, on_probation=swapped))
    return tuple(found)


def beside_of(
    deployments: Iterable[Deployment], shared: Callable[[str], Sharing | None]
) -> tuple[ServedBundle, ...]:
    """What takes part beside what answers, as ``shared`` says it of a model in the server that runs now."""
    found = []
    for deployment in deployments:
        sharing = shared(deployment.model)
        if sharing is not None and sharing.manifest_sha256 == deployment.manifest_sha256:
            found.append(_bundle(deployment.model, deployment.installed, role=sharing.role))
    return tuple(found)


def _bundle(
    model: str, it: Installed, *, on_probation: bool = False, role: str = ""
) -> ServedBundle:
    return ServedBundle(
        model, it.version, it.manifest_sha256, it.bundle, it.rollout_id, on_probation, role
    )
