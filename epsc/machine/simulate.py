"""Simulate a Schedule: when each step runs on one rank, if every rank does the same at the same time. Ranks that are
not alike run beside each other (`ranks.py`).

A step starts when all of these hold:

1. the step before it on its lane is done;
2. every step that it waits for is done, and its event has been seen (`Device.event_s`), or if it is one of every rank
   the signal (`Device.signal_s`);
3. the host has issued it. The host issues in the order of `steps`, takes `step_s`, and for each kernel `launch_s`, or
   `triton_s` if it is Triton's, and stops at a step of the host lane until that is done. A step ends no earlier than
   its last kernel was issued. As a CUDA graph (`graph`), all is issued at once: the host replays it, in `graph_s`;
4. what it takes is free:
   - SMs: `sms` of them, or the whole chip if it is free to take what it likes (`sms` 0). So two such steps queue.
     Steps that keep to their SMs run together while the sum fits. A gather or an activation that is free to take what
     it likes makes do with `Device.memory_sms`: its blocks are short, and more SMs do not make it faster. Routing,
     counts and other small steps take none. A transfer and a product that were *measured* side by side
     (`Device.besides`) do not count each other's SMs: they run together, at the measured pace;
   - the link: one transfer at a time. A dispatch and a combine use both directions of it, so two at once would share
     it and end no earlier than one after the other;
   - a copy engine, and a communicator (its collectives have one order).

What runs has a pace, 1 when it is alone, which changes whenever something starts or ends beside it. It is the least of

- the paces that were measured for it and each product or transfer beside it, multiplied. They were measured with much
  to move; what a transfer takes that moves nothing is latency, in which it takes nothing away, so a pace counts for the
  rest of its time only;
- the share of the memory's rate that is left for it: 1 / (sum of what all that run need of it), if that is above 1.

Overlap is what comes out: nothing here assumes a share that is hidden. Nothing is preempted. Among steps that could
start, the more urgent lane goes first, then the one that was ready first; one that does not fit keeps later ones from
overtaking it, because the hardware's queue does the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from math import inf

from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.schedule import HOST_LANE, Schedule, Stage
from epsc.machine.cluster import Cluster
from epsc.machine.cost import Costs, Priced, price
from epsc.machine.host import host, replay_s
from epsc.machine.jobs import COMM, COPY, SMS, Job, jobs_of, pace_beside
from epsc.machine.timeline import Timeline


def simulate(
    schedule: Schedule,
    cluster: Cluster,
    load: int,
    costs: Costs | None = None,
    graph: bool = False,
    most: int | None = None,
) -> Timeline:
    """The timeline of one rank at `load` tokens per rank, routing balanced; `costs` say what else steps take alone.

    `graph`: as a CUDA graph that is replayed (see `Schedule.capturable`). `most`: tokens per rank that the program is
    made for, if not `load`.

    Raises EpsError if steps have no lanes yet, or if some can never start.
    """
    if schedule.stage < Stage.PLACED:
        raise EpsError(
            Diagnostic("not-placed", f"schedule `{schedule.name}` is only {schedule.stage.name.lower()}: no lanes")
        )
    return Run(schedule, cluster, load, costs, graph, most).timeline()


IN_A_ROW = 4
"""Forwards that follow each other before the host looks at the device again."""


def period(schedule: Schedule, cluster: Cluster, load: int, graph: bool = False, most: int | None = None) -> float:
    """Seconds of a forward of `IN_A_ROW`, as they are measured: the first finds the device idle and the host at the
    start; in the others the host is ahead of the device as far as the schedule lets it."""
    first = Run(schedule, cluster, load, None, graph, most)
    alone = first.timeline().total
    if graph:
        return alone
    later = Run(schedule, cluster, load, None, False, most, prices=first.prices)
    if any(step.lane == HOST_LANE for step in schedule.steps):
        later.clock = first.issued - alone
        each = later.timeline().total
    else:
        # The host stops for nothing: in the end it is as far ahead as it can be, or the device waits for it always.
        later.clock = -later.issuing()
        each = max(later.issuing(), later.timeline().total)
    return (alone + (IN_A_ROW - 1) * each) / IN_A_ROW


@dataclass
class Run:
    """The run of a rank, and of all that are like it."""

    schedule: Schedule
    cluster: Cluster
    load: int
    costs: Costs | None
    graph: bool = False
    most: int | None = None
    clock: float = 0.0
    """When the host begins; the device is free at 0."""
    issued: float = 0.0
    """When the host had issued everything."""
    prices: dict[str, Priced] = field(default_factory=dict)
    """Of steps alone, if they are known already."""
    share: float = 1.0
    """Rows that come to it, over those when routing is balanced."""
    others: list[Run] = field(default_factory=list)
    """The runs of ranks that are not like it, whose signals it waits for."""
    jobs: dict[str, Job] = field(default_factory=dict)
    room: dict[str, int] = field(default_factory=dict)
    freed: dict[str, Job] = field(default_factory=dict)
    lanes: dict[str, deque[Job]] = field(default_factory=dict)
    """What has not started, by lane."""
    running: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        schedule, cluster, load, steps = self.schedule, self.cluster, self.load, self.schedule.steps
        if not self.prices:
            self.prices = {s.key: price(schedule, s, cluster, load, self.most, self.share) for s in steps}
        alone = {s.key: self.costs(schedule, s, cluster, load) for s in steps} if self.costs else {}
        self.jobs = jobs_of(schedule, cluster, self.prices, alone)
        self.room = {SMS: schedule.chip_sms, COPY: max(1, cluster.device.copy_engines)}
        for job in self.jobs.values():
            job.issue_s = 0.0 if self.graph else job.issue_s
            for name in job.takes:
                self.room.setdefault(name, 1)

    def timeline(self) -> Timeline:
        """Of this rank beside others that are all like it."""
        going = self.go()
        now = next(going)
        while now < inf:
            now = going.send(now)
        return self.result()

    def go(self) -> Generator[float, float, None]:
        """From event to event: start what can start, and say when something ends or is ready next. Then it is told
        what time it is: that, or earlier, if something happened on another rank."""
        for job in self.jobs.values():
            self.lanes.setdefault(job.step.lane, deque()).append(job)
        host = self._host()
        next(host)
        now = 0.0
        while heads := self._heads():
            host.send(now)
            for job in self.running:
                if job.end <= now:
                    self._let_go(job)
            self.running = [job for job in self.running if job.end > now]
            started = list(self._start(now, heads, self.running))
            for job in started:
                self.lanes[job.step.lane].popleft()
            self.running += started
            self._pace(now)
            if started:
                now = yield now  # the next step of a lane may start at once, if this one has no length
                continue
            later = [job.end for job in self.running] + [t for t in map(self._ready, heads) if now < t]
            now = yield min(later, default=inf)
        while True:
            self.running = [job for job in self.running if job.end > now]
            self._pace(now)
            now = yield min((job.end for job in self.running), default=inf)

    def _heads(self) -> list[Job]:
        return [queue[0] for queue in self.lanes.values() if queue]

    def _pace(self, now: float) -> None:
        """Let what runs now go on at the pace that it has beside the others; what waits for ranks slows nobody."""
        running = [job for job in self.running if now < job.end < inf]
        memory = max(1.0, sum(job.memory for job in running))
        for job in running:
            beside = 1.0
            for other in running:
                pair = self._pair(job, other)
                beside *= pair if pair is not None else 1.0
            job.own_pace = min(beside, 1 / memory if job.memory else 1.0)
            if job.meeting:
                job.meeting.go_on(now)
            else:
                job.go_on(now, job.own_pace)

    def _pair(self, one: Job, other: Job) -> float | None:
        return pace_beside(one, other, self.cluster.device, self.schedule.chip_sms)

    def _host(self) -> Generator[None, float, None]:
        self.issued = yield from host(self.jobs.values(), self.cluster.device, self._replay() or self.clock)
        while True:
            yield

    def issuing(self) -> float:
        """Seconds that the host is busy with all of it."""
        return self._replay() + sum(job.issue_s for job in self.jobs.values() if job.step.lane != HOST_LANE)

    def _replay(self) -> float:
        return replay_s(self.schedule, self.cluster.device, self.load) if self.graph else 0.0

    def _constraints(self, job: Job) -> list[tuple[float, int, str, str]]:
        """(time, rank, step, words) for each thing other than resources that holds the job; the last one binds."""
        held = [(job.issued, 0, job.host_after, "the host to issue it")]
        if job.before:
            held.append((self.jobs[job.before].end, 1, job.before, f"{job.before} on its lane"))
        for wait in job.waits:
            if wait in self.jobs:
                other = self.jobs[wait]
                delay = self._seen(job, other)
                held.append((other.end + delay, 2, wait, f"{wait} to be done"))
                if wait in job.signals and self.others:
                    there = max(run.jobs[wait].end for run in self.others)
                    held.append((there + delay, 2, wait, f"{wait} of another rank"))
        return held

    def _seen(self, job: Job, other: Job) -> float:
        """How long it takes until `job` can go on after another is done. A graph needs no events: what a step lets go
        starts at once, on whatever lane."""
        device = self.cluster.device
        if other.step.key in job.signals:
            return device.signal_s
        return device.event_s if other.step.lane != job.step.lane and not self.graph else 0.0

    def _ready(self, job: Job) -> float:
        return max(time for time, *_ in self._constraints(job))

    def _start(self, now: float, heads: list[Job], running: list[Job]) -> Iterator[Job]:
        """Start what is ready and fits; what does not fit keeps its resources from those behind it."""
        busy = [job for job in running if job.takes]
        closed: set[str] = set()
        ready = [(job.urgency, self._ready(job), job.index, job) for job in heads]
        for _, time, _, job in sorted((r for r in ready if r[1] <= now), key=lambda r: r[:3]):
            blocked = [name for name in job.takes if name in closed or not self._fits(job, name, busy)]
            if blocked:
                closed.update(job.takes)
                holders = [other for other in busy if blocked[0] in other.takes]
                job.waited_for = f"{blocked[0]}" + (f", held by {holders[0].step.key}" if holders else "")
                continue
            if time < now:
                # Resources held it: whoever with one of them ended last lets it go.
                freed = max(
                    (self.freed[name] for name in job.takes if name in self.freed),
                    key=lambda o: (o.end, o.index),
                    default=None,
                )
                job.after = freed.step.key if freed else ""
            else:
                _, _, job.after, words = max(self._constraints(job), key=lambda held: held[:2])
                job.waited_for = words if now > 0 else ""
            job.start = now
            job.settle(running)
            if job.meeting:
                job.meeting.come(job, now, self.has_links)
            else:
                job.begin(now)
            busy.append(job)
            yield job

    def _let_go(self, job: Job) -> None:
        """Note of each resource who gave some of it back last."""
        for name in job.takes:
            last = self.freed.get(name)
            if last is None or (last.end, last.index) < (job.end, job.index):
                self.freed[name] = job

    def _fits(self, job: Job, name: str, busy: list[Job]) -> bool:
        others = busy if name != SMS else [other for other in busy if self._pair(job, other) is None]
        return sum(other.takes.get(name, 0) for other in others) + job.takes[name] <= self.room[name]

    def has_links(self, job: Job, takes: dict[str, int], now: float) -> bool:
        """Whether the links that a collective takes are free, once its ranks are here."""
        busy = [other for other in self.running if other is not job and other.end > now]
        names = [name for name in takes if name != SMS and not name.startswith(COMM)]
        return all(sum(other.takes.get(name, 0) for other in busy) + takes[name] <= self.room[name] for name in names)

    def _missing(self, job: Job) -> str:
        blocked = [words for time, _, _, words in self._constraints(job) if time == inf]
        blocked += [f"step {wait}, which is not there" for wait in job.waits if wait not in self.jobs]
        return " and ".join(blocked)

    def result(self) -> Timeline:
        """What ran. Raises EpsError if not all did."""
        if heads := self._heads():
            raise EpsError(
                Diagnostic(
                    "stuck-schedule",
                    f"step `{heads[0].step.key}` of `{self.schedule.name}` can never start",
                    help=f"it needs {self._missing(heads[0])}",
                )
            )
        jobs = sorted(self.jobs.values(), key=lambda job: (job.start, job.index))
        events = [job.event(self.schedule) for job in jobs]
        named = [lane.name for lane in self.schedule.lanes]
        used = dict.fromkeys([*named, *(step.lane for step in self.schedule.steps)])
        present = {event.lane for event in events}
        lanes = tuple(lane for lane in used if lane in present)
        return Timeline(self.schedule.name, self.load, lanes, tuple(events), self.issuing())
