"""A fleet of thousands as arrays: what every device would have reported, without the devices. In a test::

    world = VirtualWorld(Setting(candidate=Candidate(error_factor=2.0)), count=2000, seed=1)
    world.deploy(np.arange(20))
    windows, events = world.advance(300.0)

Rules kept here: time is the caller's and only moves forward; the same seed and the same calls give
the same reports; a swap ends the window that is open, as it does on a device; a report that is late
comes when it comes, and one that is lost never does.
"""

from typing import Final

import numpy as np

from simulator.virtual.characters import DAY_S, generator
from simulator.virtual.counting import History, Setting, Spans, Traffic
from simulator.virtual.windows import Bools, Events, Floats, Ints, Outcome, Windows

__all__ = ["VirtualWorld"]

BACK_S: Final = 5.0  # the old bundle is still on the device: a rollback is quick
NEVER: Final = np.inf
_NOTHING: Final = Events(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))


class VirtualWorld:
    """``count`` devices, by number from 0. Use it once, forward."""

    def __init__(self, setting: Setting, count: int, seed: int) -> None:
        self.setting = setting
        self.count = count
        self.now_s = 0.0
        self._traffic = Traffic(setting, count, seed)
        self.characters = self._traffic.characters
        self._network = generator(seed, "network")
        self._updates = generator(seed, "updates")
        self._fast = np.zeros(count, bool)
        self._start_s = -generator(seed, "phase").random(count) * setting.window_s
        self.candidate = np.zeros(count, bool)
        self._concerned = self._traffic.concerned()  # by what the candidate changes
        self._silent = np.zeros(count, bool)
        self._failed = np.zeros(
            count, bool
        )  # a device does not try a bundle again that it put back
        self._step_s = np.full(count, NEVER)  # when the next step of a deployment happens
        self._step = np.zeros(count, np.int64)  # and which Outcome it is
        self._spans: list[Spans] = []
        self._under_way: list[Windows] = []

    # --- what the fleet manager does --------------------------------------------------------------

    def deploy(self, devices: Ints) -> None:
        """Send the candidate to these devices; those that have it or are at it go on, and those
        that it failed on do not try again."""
        candidate = self.setting.candidate
        busy = self.candidate | self._failed | np.isfinite(self._step_s)
        fresh = devices[~busy[devices]]
        delay = self._updates.normal(0.0, candidate.install_spread, len(fresh))
        self._step_s[fresh] = self.now_s + candidate.install_s * np.exp(delay)
        refused = self._updates.random(len(fresh)) < candidate.refused_rate
        refused &= self._concerned[fresh]
        self._step[fresh] = np.where(refused, Outcome.REFUSED, Outcome.COMMITTED)

    def revert(self, devices: Ints) -> None:
        """Send these devices back to the bundle they had; a deployment under way is given up."""
        self._step_s[devices[~self.candidate[devices]]] = NEVER
        back = devices[self.candidate[devices]]
        self._step_s[back] = self.now_s + BACK_S * (0.5 + self._updates.random(len(back)))
        self._step[back] = Outcome.RESTORED

    def set_pace(self, fast: Bools) -> None:
        """Which devices report every ``cohort_window_s`` from now on. Becoming fast ends a window early."""
        changed = np.flatnonzero(fast & ~self._fast)
        self._close(changed, np.full(len(changed), self.now_s))
        self._fast = fast.copy()

    # --- what the devices report ------------------------------------------------------------------

    def history(self, span_s: float = DAY_S) -> History:
        """What each device did in the ``span_s`` before the world began, with the bundle it had."""
        return self._traffic.history(span_s)

    def advance(self, to_s: float) -> tuple[Windows, Events]:
        """Let time pass; the windows that have arrived since, and the steps of deployments.

        Windows of one device come in their order, except those that are late.
        """
        events: list[Events] = []
        while (due := self._step_s <= to_s).any():
            self._run(np.minimum(self._step_s, to_s))
            events.append(self._take_steps(np.flatnonzero(due)))
        self._run(np.full(self.count, to_s))
        self.now_s = to_s
        sent = self._send(self._traffic.windows(self._joined_spans()))
        arrived = sent.arrived_s <= to_s
        self._under_way = [sent.rows(~arrived)]
        return sent.rows(arrived), Events.joined(events or [_NOTHING])

    def _run(self, until_s: Floats) -> None:
        """End every window that is over by its device's ``until_s``."""
        setting = self.setting
        length_s = np.where(self._fast, setting.cohort_window_s, setting.window_s)
        open_s = np.where(self._silent, NEVER, self._start_s)
        due = np.flatnonzero(open_s + length_s <= until_s)
        if not len(due):
            return
        each_s = length_s[due]
        number = np.floor((until_s[due] - self._start_s[due]) / each_s).astype(np.int64)
        device, step_s = np.repeat(due, number), np.repeat(each_s, number)
        nth = np.arange(len(device)) - np.repeat(np.cumsum(number) - number, number)
        start_s = self._start_s[device] + nth * step_s
        self._spans.append(Spans(device, start_s, start_s + step_s, self.candidate[device]))
        self._start_s[due] += number * each_s

    def _close(self, devices: Ints, at_s: Floats) -> None:
        """End the open windows of these devices at ``at_s``; new ones begin there."""
        start_s = self._start_s[devices]
        some = (at_s > start_s) & ~self._silent[devices]
        shut = devices[some]
        self._spans.append(Spans(shut, start_s[some], at_s[some], self.candidate[shut]))
        self._start_s[devices] = at_s

    def _take_steps(self, due: Ints) -> Events:
        at_s, outcome = self._step_s[due].copy(), self._step[due].copy()
        self._close(due, at_s)
        self._step_s[due] = NEVER
        candidate = self.setting.candidate
        on = due[outcome == Outcome.COMMITTED]
        self.candidate[on] = True
        leaves = self._updates.random(len(on)) < candidate.reverted_rate
        leaves &= self._concerned[on]
        self._step_s[on[leaves]] = at_s[outcome == Outcome.COMMITTED][leaves] + candidate.reverted_s
        self._step[on[leaves]] = Outcome.REVERTED
        silent = self._updates.random(len(on)) < candidate.silent_rate
        self._silent[on] = silent & self._concerned[on]
        self._failed[due[(outcome == Outcome.REFUSED) | (outcome == Outcome.REVERTED)]] = True
        off = due[(outcome == Outcome.REVERTED) | (outcome == Outcome.RESTORED)]
        self.candidate[off] = False
        self._silent[off] = False
        return Events(due, at_s, outcome)

    def _joined_spans(self) -> Spans:
        spans, self._spans = self._spans, []
        if not spans:
            return Spans(np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0, bool))
        device = np.concatenate([one.device for one in spans])
        return Spans(
            device.astype(np.int64),
            np.concatenate([one.start_s for one in spans]),
            np.concatenate([one.end_s for one in spans]),
            np.concatenate([one.candidate for one in spans]),
        )

    def _send(self, made: Windows) -> Windows:
        """What is on its way: delayed and thinned out by the network, with what was late before."""
        population = self.setting.population
        if population.late_rate:
            late = self._network.random(len(made)) < population.late_rate
            made.arrived_s[late] += self._network.exponential(population.late_s, int(late.sum()))
        if population.lost_rate:
            made = made.rows(self._network.random(len(made)) >= population.lost_rate)
        return Windows.joined([*self._under_way, made])
