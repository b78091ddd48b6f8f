"""Which execution providers may run models: named by the device's owner, checked, never replaced.

Rules kept here:

- Nothing is chosen for the owner: the list in the configuration is the list that is used, in its order.
- A provider that this onnxruntime does not have is an error that says what there is, not a slower substitute.
- A provider that sends tensors to another machine is refused: what a device sees stays on the device.

No onnxruntime here: the supervisor checks names with this module before any child is started.
"""

import re
from collections.abc import Sequence
from typing import Final

from agent.errors import ConfigError

__all__ = ["CPU", "DEFAULT_PROVIDERS", "check_available", "check_names"]

CPU: Final = "CPUExecutionProvider"
DEFAULT_PROVIDERS: Final = (CPU,)
MAX_PROVIDERS: Final = 8
_NAME: Final = re.compile(r"[A-Za-z0-9]{1,40}ExecutionProvider")
_REMOTE: Final = frozenset({"AzureExecutionProvider"})


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The providers as a tuple, when each is a name that may be used. ``where`` names the key.

    Raises:
        ConfigError: the list is empty or too long, or a name is none, twice there or a remote one.
    """
    if not names or len(names) > MAX_PROVIDERS:
        raise ConfigError(f"{where} must name 1 to {MAX_PROVIDERS} providers, like {CPU}")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: {name!r} is not the name of an execution provider; they look like {CPU}"
            )
        if name in _REMOTE:
            raise ConfigError(
                f"{where}: {name} sends tensors to another machine; models run on this device only"
            )
    if len(set(names)) != len(names):
        raise ConfigError(f"{where} names a provider twice: {', '.join(names)}")
    return tuple(names)


def check_available(wanted: Sequence[str], available: Sequence[str], where: str) -> None:
    """Refuse providers that the installed onnxruntime does not have.

    Raises:
        ConfigError: names the first that is missing and those that could be used.
    """
    for name in wanted:
        if name not in available:
            usable = [other for other in available if other not in _REMOTE]
            raise ConfigError(
                f"{where}: {name} is not available on this device; onnxruntime here has "
                f"{', '.join(usable)}. Install the onnxruntime that has it, or change the list."
            )
