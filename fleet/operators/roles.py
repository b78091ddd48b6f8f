"""Who may do what: three roles, and what an operator's token may be restricted to. Pure.

Rules kept here: each role may do what the one below it may; a scope restricts what is changed, never what is seen; a
caller is known by the name of its token, so that whoever gets a new token of the same name is the same person.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from fleet.errors import ForbiddenError, RequestError

__all__ = ["LOCAL", "NOBODY", "Caller", "Role", "Scope", "check_name", "parse_scope"]

MAX_SCOPE: Final = 32
RESERVED: Final = frozenset({"local", "controller", "operator", "nobody", "latest"})
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_VALUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KINDS: Final = ("model", "class")


class Role(StrEnum):
    """From the least to the most."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, needed: "Role") -> bool:
        """Whether this role may do what needs the other."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Scope:
    """The models and device classes that may be changed; an empty tuple is all of them."""

    models: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def is_all(self) -> bool:
        return not self.models and not self.classes

    def to_json(self) -> dict[str, list[str]]:
        return {"model": list(self.models), "class": list(self.classes)}

    def __str__(self) -> str:
        said = [f"model={model}" for model in self.models]
        said += [f"class={one}" for one in self.classes]
        return ", ".join(said)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``token_id`` is "" for who has shown no token."""

    token_id: str
    name: str
    role: Role | None
    scope: Scope = field(default_factory=Scope)

    def require(self, needed: Role, what: str) -> None:
        """Raises ForbiddenError: the role of this caller is not enough for ``what``."""
        if self.role is None or not self.role.covers(needed):
            raise ForbiddenError(
                f"{what} needs the role {needed}, and the token {self.name!r} is a {self.role or 'stranger'}'s: "
                "use another token, or ask an admin for one"
            )

    def require_scope(self, model: str, device_class: str) -> None:
        """Raises ForbiddenError: this caller may not change that model on that class of devices."""
        kept_out = (self.scope.models and model not in self.scope.models) or (
            self.scope.classes and device_class not in self.scope.classes
        )
        if kept_out:
            raise ForbiddenError(
                f"the token {self.name!r} is for {self.scope} and not for model {model} on class {device_class}: use "
                "another token, or ask an admin for one"
            )


LOCAL: Final = Caller("local", "local", Role.ADMIN)
"""Who can read and write the fleet folder, and so can do everything in it anyway."""
NOBODY: Final = Caller("", "nobody", None)


def check_name(name: str) -> str:
    """Return ``name`` when a token may be called that.

    Raises:
        RequestError: it may not.
    """
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise RequestError(
            f"{name!r:.80} cannot be the name of a token: use up to 64 of a-z, 0-9, '.', '_', '@' and '-', starting "
            f"with a letter or digit, and none of {', '.join(sorted(RESERVED))}"
        )
    return name


def parse_scope(said: Mapping[str, Sequence[str]], role: Role) -> Scope:
    """The scope in ``{"model": [...], "class": [...]}``.

    Raises:
        RequestError: a key or value is none, there are too many, or the role has no scope.
    """
    for key in said:
        if key not in _KINDS:
            raise RequestError(f"scope {key!r:.40} is not known: use {' or '.join(_KINDS)}")
    scope = Scope(*(_values(kind, said.get(kind, ())) for kind in _KINDS))
    if not scope.is_all and role is not Role.OPERATOR:
        raise RequestError(
            f"a scope restricts what an operator changes: a token of role {role} has none"
        )
    return scope


def _values(kind: str, values: Iterable[str]) -> tuple[str, ...]:
    found = tuple(sorted(set(values)))
    if len(found) > MAX_SCOPE:
        raise RequestError(f"a scope names at most {MAX_SCOPE} of {kind}, not {len(found)}")
    for value in found:
        if not _VALUE.fullmatch(value):
            raise RequestError(f"scope {kind}={value!r:.80} is no name of a {kind}")
    return found


def scope_from_row(said: Mapping[str, Any]) -> Scope:
    """The scope as it is stored."""
    return Scope(tuple(said.get("model", ())), tuple(said.get("class", ())))
