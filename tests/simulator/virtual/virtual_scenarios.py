"""Small virtual scenarios, which end after some minutes of the fleet and a moment of ours."""

from simulator.scenario import Scenario, parse_scenario

__all__ = ["TOML", "small"]

TOML = """
[devices]
count = 120
[run]
time = "virtual"
window_s = 60
cohort_window_s = 15
{run}
rollout = '''
[[stage]]
percent = 20
bake = "2m"
[[stage]]
percent = 100
bake = "2m"
'''
[population]
requests_per_min = 60
error_rate = 0.01
{population}
[candidate]
{candidate}
"""


def small(candidate: str = "", *, population: str = "", run: str = "") -> Scenario:
    """120 devices, two stages of two minutes."""
    return parse_scenario(TOML.format(candidate=candidate, population=population, run=run))
