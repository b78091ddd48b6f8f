"""Rollouts: one bundle going to a fleet in stages, each behind the gate.

The light face: what is asked for, which the command line reads too. ``controller`` decides over a
``snapshot``, ``changes`` says what an event makes of a rollout, ``executor`` acts; these and what
touches the database are imported by name, because they are heavier.
"""

from fleet.rollout.parsing import parse_spec
from fleet.rollout.record import Rollout
from fleet.rollout.rollout_toml import spec_from_toml
from fleet.rollout.spec import Guards, RolloutSpec, Stage, StageKind, Statistics, Strategy
from fleet.rollout.states import Event, State

__all__ = [
    "Event",
    "Guards",
    "Rollout",
    "RolloutSpec",
    "Stage",
    "StageKind",
    "State",
    "Statistics",
    "Strategy",
    "parse_spec",
    "spec_from_toml",
]
