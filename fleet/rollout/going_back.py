"""Going back to an older release must be meant: devices refuse it otherwise. Pure.

Rules kept here: what counts is the release number that the offline role gave, not the version's text; a release that
is not signed any more is newer than none.
"""

from collections.abc import Iterable, Mapping, Sequence

from agent.trust import BundleRelease
from fleet.rollout.fitness import Candidate
from fleet.rollout.spec import RolloutSpec

__all__ = ["older_than_served"]

SAMPLE = 3


def older_than_served(
    spec: RolloutSpec,
    release: BundleRelease,
    releases: Mapping[str, BundleRelease],
    pool: Sequence[Candidate],
) -> tuple[str, ...]:
    """Why devices of the pool would refuse the release: they serve a newer one, and the spec does not say ``older``."""
    if spec.older:
        return ()
    newer = {entry.sha256: entry for entry in _newer(release, releases.values())}
    serving = [device for device in pool if device.serves in newer]
    if not serving:
        return ()
    highest = max((newer[device.serves] for device in serving), key=lambda entry: entry.release)
    named = ", ".join(device.facts.device_id for device in serving[:SAMPLE])
    more = ", ..." if len(serving) > SAMPLE else ""
    count = "1 device serves" if len(serving) == 1 else f"{len(serving)} devices serve"
    return (
        f"{count} a newer release than {release.path}, up to {highest.path} ({named}{more}), and refuse to go "
        "back unless the rollout says older = true (--older)",
    )


def _newer(release: BundleRelease, others: Iterable[BundleRelease]) -> list[BundleRelease]:
    name = (release.device_class, release.model)
    return [
        other
        for other in others
        if (other.device_class, other.model) == name and other.release > release.release
    ]
