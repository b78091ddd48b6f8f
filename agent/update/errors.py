"""What can go wrong in a deployment, beyond what the packages below say themselves."""

from agent.errors import AgentError, BundleError, DeviceError

__all__ = ["JournalError", "ManifestMismatchError", "TransitionError"]


class TransitionError(AgentError):
    """An event that must not happen in a phase: a bug in the agent, never an outcome."""

    def __init__(self, phase: str, event: str) -> None:
        super().__init__(
            f"a deployment in phase {phase!r} cannot take event {event!r}: this is a bug in the "
            f"agent, please report it with the log around it"
        )


class ManifestMismatchError(BundleError):
    """A manifest that is not the one the directive names."""

    def __init__(self, bundle: str, what: str) -> None:
        super().__init__(
            f"the manifest of {bundle} {what}; publish the bundle again or point the rollout at the right one"
        )


class JournalError(DeviceError):
    """The journal cannot be read or written."""

    def __init__(self, path: str, what: str, advice: str) -> None:
        super().__init__(f"journal {path}: {what}; {advice}")
