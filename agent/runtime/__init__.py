"""Running a bundle: pipeline, contract, golden cases, counters, registry, trial.

Rules kept here:

- numpy and onnxruntime live in this package and in ``agent.serving`` only, and this face imports
  neither: ``agent.runtime.child``, ``trial_process`` and ``verdict`` are for the supervisor, which
  must stay small.
- A bundle is hostile until a trial in a child process says otherwise.
"""

from agent.runtime.errors import (
    InferenceError,
    InputContractError,
    ModelLoadError,
    NotReadyError,
    RequestError,
    UnknownServableError,
)
from agent.runtime.trial_process import TrialLimits, TrialReport, run_trial, run_trial_blocking
from agent.runtime.verdict import TrialReason

__all__ = [
    "InferenceError",
    "InputContractError",
    "ModelLoadError",
    "NotReadyError",
    "RequestError",
    "TrialLimits",
    "TrialReason",
    "TrialReport",
    "UnknownServableError",
    "run_trial",
    "run_trial_blocking",
]
