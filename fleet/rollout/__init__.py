"""Rollouts: one bundle going to a fleet in stages, each behind the gate.

``controller`` decides over a ``snapshot``. What touches the database is imported by name, because it
is heavier: ``executor`` (acts), ``records``, ``observe``, ``operations``, ``audit``.
"""

from fleet.rollout.controller import Action, Step, decide
from fleet.rollout.parsing import parse_spec
from fleet.rollout.record import Rollout
from fleet.rollout.rollout_toml import spec_from_toml
from fleet.rollout.snapshot import Snapshot
from fleet.rollout.spec import Guards, RolloutSpec, Stage, StageKind, Statistics, Strategy
from fleet.rollout.states import Event, State

__all__ = [
    "Action",
    "Event",
    "Guards",
    "Rollout",
    "RolloutSpec",
    "Snapshot",
    "Stage",
    "StageKind",
    "State",
    "Statistics",
    "Step",
    "Strategy",
    "decide",
    "parse_spec",
    "spec_from_toml",
]
