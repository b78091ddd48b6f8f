"""Every route of the HTTP API and the role it needs, in one table. Pure.

Rules kept here: what is not in the table is not reachable, so a route that was forgotten here is closed and not open;
whatever changes something is audited. The documentation's table is made from this one.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from fleet.operators.roles import Role

__all__ = ["OPEN", "RULES", "Rule", "find_rule", "is_known"]

OPEN: Final = frozenset({"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
"""What anybody may read: the description of the API, which is the same for every fleet."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``path`` as FastAPI has it. ``operation`` is what the audit log calls it; ``audited`` false: it changes nothing
    that is seen before another operation, which is audited, makes it count."""

    method: str
    path: str
    role: Role
    operation: str
    audited: bool = False
    pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = re.split(r"\{\w+\}", self.path)
        pattern = re.compile("[^/]+".join(re.escape(part) for part in parts))
        object.__setattr__(self, "pattern", pattern)


def _get(path: str, operation: str) -> Rule:
    return Rule("GET", path, Role.VIEWER, operation)


def _change(method: str, path: str, role: Role, operation: str) -> Rule:
    return Rule(method, path, role, operation, audited=True)


RULES: Final[tuple[Rule, ...]] = (
    _get("/v1/status", "status"),
    _get("/v1/devices", "device list"),
    _get("/v1/devices/{device_id}", "device show"),
    _change("POST", "/v1/devices/{device_id}/token", Role.ADMIN, "device token"),
    _change("POST", "/v1/devices/{device_id}/accept", Role.ADMIN, "device accept"),
    _change("POST", "/v1/devices/{device_id}/reject", Role.OPERATOR, "device reject"),
    _change("POST", "/v1/devices/{device_id}/revoke", Role.OPERATOR, "device revoke"),
    _get("/v1/bundles", "bundle list"),
    _get("/v1/attestations/{sha256}", "read an attestation"),
    _get("/v1/repository/release", "read release metadata"),
    _get("/v1/repository/root", "read root metadata"),
    _get("/v1/repository/roles", "read roles"),
    _get("/v1/repository/roles/{role}", "read role metadata"),
    _change("POST", "/v1/repository/roles/{role}", Role.ADMIN, "key merge"),
    _get("/v1/rollouts", "rollout list"),
    _get("/v1/rollouts/{rollout_id}", "rollout status"),
    _get("/v1/rollouts/{rollout_id}/decisions", "rollout decisions"),
    _get("/v1/rollouts/{rollout_id}/audit", "rollout audit"),
    _get("/v1/rollouts/{rollout_id}/deployments", "rollout deployments"),
    _get("/v1/webhooks", "webhook list"),
    _get("/v1/tokens", "token list"),
    _get("/v1/audit", "audit list"),
    # Pieces are named by their digest and reach no device before a bundle that names them is published.
    Rule("POST", "/v1/pieces/missing", Role.OPERATOR, "ask for missing pieces"),
    Rule("PUT", "/v1/pieces/{sha256}", Role.OPERATOR, "upload a piece"),
    _change("POST", "/v1/bundles", Role.OPERATOR, "bundle publish"),
    Rule("POST", "/v1/rollouts/plan", Role.VIEWER, "rollout plan"),
    _change("POST", "/v1/rollouts", Role.OPERATOR, "rollout start"),
    _change("POST", "/v1/rollouts/{rollout_id}/{event}", Role.OPERATOR, "rollout change"),
    _change("POST", "/v1/webhooks/{name}/test", Role.OPERATOR, "webhook test"),
    _change("POST", "/v1/tokens", Role.ADMIN, "token create"),
    _change("POST", "/v1/tokens/{name}/revoke", Role.ADMIN, "token revoke"),
)


def find_rule(method: str, path: str) -> Rule | None:
    """The rule for a request; None where there is no such route."""
    for rule in RULES:
        if rule.method == method and rule.pattern.fullmatch(path):
            return rule
    return None


def is_known(path: str) -> bool:
    """Whether the path exists with any method."""
    return any(rule.pattern.fullmatch(path) for rule in RULES)
