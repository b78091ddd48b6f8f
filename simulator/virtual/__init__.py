"""Virtual devices: a population as arrays under a clock that nobody waits for."""

from simulator.virtual.counting import History, Setting
from simulator.virtual.settings import Candidate, Incident, Population
from simulator.virtual.windows import RATES, Events, Outcome, Windows
from simulator.virtual.world import VirtualWorld

__all__ = [
    "RATES",
    "Candidate",
    "Events",
    "History",
    "Incident",
    "Outcome",
    "Population",
    "Setting",
    "VirtualWorld",
    "Windows",
]
