"""The settings of people's side in fleet.toml: ``[http]`` and ``[operators]``."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["HttpConfig", "OperatorsConfig"]


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, slots=True)
class HttpConfig:
    listen: str = _doc(
        "127.0.0.1:8470",
        "address and port; on loopback, unless tls is true and there is a token (`fleet token create`). "
        "Port 0 takes a free one",
    )
    tls: bool = _doc(False, "https, with the certificate in pki/server.pem")


@dataclass(frozen=True, slots=True)
class OperatorsConfig:
    second_approval_above_percent: float = _doc(
        0.0,
        "a stage that reaches more of the fleet waits for the approval of somebody else than who started it; "
        "0 is off",
    )

    @property
    def second_approval_above_bp(self) -> int | None:
        """In basis points; None when it is off."""
        percent = self.second_approval_above_percent
        return round(percent * 100) if percent > 0 else None
