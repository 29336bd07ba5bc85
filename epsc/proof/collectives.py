"""Deadlock: all ranks issue the same transfers in one order on each communicator, and no wait goes in a circle."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from epsc.ir.errors import Faults
from epsc.ir.schedule import HOST_LANE, Schedule, Step


def check_collectives(schedules: Sequence[Schedule], faults: Faults) -> None:
    """`schedules[r]` is what rank r runs (one schedule stands for all ranks when they are the same).

    A collective finishes when every rank has started it. Ranks are dry-run together: each lane runs its steps in order,
    each step once its waits are done and the host has issued it; a transfer once all ranks have reached it. Where
    nothing can go on before the end, the steps that are stuck are reported, with what each waits for.
    """
    first = schedules[0]
    for rank, schedule in enumerate(schedules[1:], start=1):
        if schedule is first:
            continue
        comms = {step.comm for s in (first, schedule) for step in s.steps if step.comm}
        for comm in sorted(comms):
            ours = [step.key for step in schedule.steps if step.comm == comm]
            theirs = [step.key for step in first.steps if step.comm == comm]
            for i in range(max(len(ours), len(theirs))):
                a = theirs[i] if i < len(theirs) else "nothing"
                b = ours[i] if i < len(ours) else "nothing"
                if a != b:
                    faults.add(
                        "rank-order",
                        f"transfer {i} on communicator `{comm}` is `{a}` on rank 0 and `{b}` on rank {rank}:"
                        " they would wait for each other for ever",
                        first.node(first.step[a]).span if a in first.step else None,
                    )
                    break
    distinct = [first, *(s for s in schedules[1:] if s is not first)]
    _dry_run(distinct, faults)


class _Rank:
    """One rank of the dry run: how far its host and each of its lanes have come."""

    def __init__(self, number: int, schedule: Schedule) -> None:
        self.number = number
        self.schedule = schedule
        self.place = {step.key: i for i, step in enumerate(schedule.steps)}
        self.issued = 0
        self.done: set[str] = set()
        self.all: list[_Rank] = []
        self.lanes: dict[str, deque[Step]] = {lane.name: deque() for lane in schedule.lanes if lane.name != HOST_LANE}
        for step in schedule.steps:
            if step.lane in self.lanes:
                self.lanes[step.lane].append(step)

    def waits_done(self, step: Step) -> bool:
        return all(wait.step in rank.done for wait in step.waits for rank in (self.all if wait.everywhere else (self,)))

    def lacks(self, step: Step) -> list[str]:
        """What `step` waits for and is not done, for people."""
        found = [f"`{wait.step}`" for wait in step.waits if wait.step not in self.done]
        for wait in step.waits:
            others = [rank.number for rank in self.all if rank is not self and wait.step not in rank.done]
            found += [f"`{wait.step}` of rank {number}" for number in others if wait.everywhere]
        return found

    def can_start(self, step: Step) -> bool:
        return self.place[step.key] < self.issued and self.waits_done(step)

    def reached(self, step: Step) -> bool:
        """Whether this rank has come to the transfer `step`, or is past it."""
        if step.key in self.done:
            return True
        queue = self.lanes.get(step.lane, deque())
        return len(queue) > 0 and queue[0].key == step.key and self.can_start(queue[0])

    def issue(self) -> bool:
        """Let the host go on until it stops for a step of its own; whether it moved."""
        before = self.issued
        steps = self.schedule.steps
        while self.issued < len(steps):
            step = steps[self.issued]
            if step.lane == HOST_LANE:
                if not self.waits_done(step):
                    break
                self.done.add(step.key)
            self.issued += 1
        return self.issued > before

    def stuck(self) -> list[Step]:
        heads = [queue[0] for queue in self.lanes.values() if queue]
        return heads + list(self.schedule.steps[self.issued : self.issued + 1])


def _dry_run(schedules: Sequence[Schedule], faults: Faults) -> None:
    """Run all ranks step by step, as far as they go."""
    ranks = [_Rank(number, schedule) for number, schedule in enumerate(schedules)]
    for rank in ranks:
        rank.all = ranks
    moved = True
    while moved:
        moved = False
        for rank in ranks:
            moved = rank.issue() or moved
            for queue in rank.lanes.values():
                while queue and rank.can_start(queue[0]):
                    if queue[0].comm and not all(other.reached(queue[0]) for other in ranks):
                        break
                    rank.done.add(queue.popleft().key)
                    moved = True
    for rank in ranks:
        for step in dict.fromkeys(rank.stuck()):
            waits = rank.lacks(step)
            why = f"waits for {', '.join(waits)}" if waits else "waits for other ranks or the host"
            node = schedules[0].graph.node.get(step.node)
            faults.add(
                "deadlock", f"rank {rank.number}: `{step.key}` never starts: it {why}", node.span if node else None
            )
