"""The bytes of a bundle on their way to the device: fetch, resume, bounds."""

from agent.delivery.backoff import backoff_s
from agent.delivery.errors import (
    DiskFullError,
    FetchStalledError,
    PieceDamagedError,
    PieceDigestError,
    PieceStreamError,
)
from agent.delivery.fetch import FetchLimits, FetchPorts, FetchProgress, PieceFetch, check_space
from agent.delivery.offload import Offload, run_inline, run_to_end

__all__ = [
    "DiskFullError",
    "FetchLimits",
    "FetchPorts",
    "FetchProgress",
    "FetchStalledError",
    "Offload",
    "PieceDamagedError",
    "PieceDigestError",
    "PieceFetch",
    "PieceStreamError",
    "backoff_s",
    "check_space",
    "run_inline",
    "run_to_end",
]
