"""What happens before what: vector clocks over the lanes of a Schedule.

`clock[s][lane]` is the number of steps of `lane` that are certainly finished when step `s` starts. One clock a step
makes every question O(1) and the whole proof linear in the number of steps. A second clock a step counts what is
finished on every rank, as far as signals say.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from epsc.ir.schedule import HOST_LANE, Schedule, Step


class Happens:
    """The order that a Schedule guarantees: program order on each lane, waits, and the host stopping at its own steps.

    Steps may be added one at a time (`add`), so that `synchronise` can ask what a step still has to wait for.
    """

    def __init__(self, lanes: list[str]) -> None:
        self._lane = {lane: i for i, lane in enumerate(lanes)}
        self._none = [0] * len(lanes)
        self._clock: dict[str, list[int]] = {}
        self._place: dict[str, tuple[int, int]] = {}
        self._count = [0] * len(lanes)
        self._after_lane = [list(self._none) for _ in lanes]
        self._after_host = list(self._none)
        self._heard: dict[str, list[int]] = {}
        self._heard_on_lane = [list(self._none) for _ in lanes]
        self._heard_by_host = list(self._none)

    @classmethod
    def of(cls, schedule: Schedule) -> Happens:
        """The order of a whole schedule. A wait for a step that is not issued yet guarantees nothing, as on a GPU."""
        happens = cls([lane.name for lane in schedule.lanes])
        for step in schedule.steps:
            waits = [wait for wait in step.waits if wait.step in happens]
            happens.add(step, [w.step for w in waits], [w.step for w in waits if w.everywhere])
        return happens

    def __contains__(self, key: str) -> bool:
        return key in self._clock

    def base(self, step: Step) -> list[int]:
        """What `step` comes after before any wait: its lane's last step, and all that the host stopped for."""
        return list(map(max, self._after_lane[self._lane[step.lane]], self._after_host))

    def heard_before(self, step: Step) -> list[int]:
        """The same of what is finished on every rank."""
        return list(map(max, self._heard_on_lane[self._lane[step.lane]], self._heard_by_host))

    def add(self, step: Step, waits: list[str], everywhere: Sequence[str] = ()) -> None:
        """Issue `step` next, waiting for the steps `waits`; for those of them in `everywhere` on every rank."""
        clock, heard = self.base(step), self.heard_before(step)
        for key in waits:
            clock, heard = self.joined(clock, key), self.heard_with(heard, key, key in everywhere)
        lane = self._lane[step.lane]
        self._heard[step.key] = self._heard_on_lane[lane] = heard
        self._clock[step.key] = clock
        self._place[step.key] = lane, self._count[lane]
        self._count[lane] += 1
        self._after_lane[lane] = self._done(step.key)
        if step.lane == HOST_LANE:
            self._after_host = list(map(max, self._after_host, self._done(step.key)))
            self._heard_by_host = list(map(max, self._heard_by_host, heard))

    def _done(self, key: str) -> list[int]:
        lane, place = self._place[key]
        done = list(self._clock[key])
        done[lane] = max(done[lane], place + 1)
        return done

    def reached(self, clock: list[int], key: str) -> bool:
        """Whether the step `key` is finished once `clock` is reached."""
        lane, place = self._place[key]
        return clock[lane] > place

    def joined(self, clock: list[int], key: str) -> list[int]:
        """The clock after also waiting for the step `key`."""
        return list(map(max, clock, self._done(key)))

    def heard_with(self, heard: list[int], key: str, everywhere: bool) -> list[int]:
        """What is finished on every rank after also waiting for the step `key`: ranks run the same steps."""
        known = list(map(max, heard, self._heard[key]))
        return self.joined(known, key) if everywhere else known

    def before(self, first: str, then: str) -> bool:
        """Whether step `first` is certainly finished when step `then` starts."""
        return self.reached(self._clock[then], first)

    def beside(self, a: str, b: str) -> bool:
        """Whether the two may run at the same time."""
        return not self.before(a, b) and not self.before(b, a)

    def stretch(self, step: Step, lane: list[Step]) -> list[Step]:
        """The steps of another lane, in its order, that may run at the same time as `step`: found by bisection."""
        start = bisect_left(lane, True, key=lambda other: not self.before(other.key, step.key))
        stop = bisect_left(lane, True, start, key=lambda other: self.before(step.key, other.key))
        return lane[start:stop]
