"""Simulate a Schedule: when each step runs on one rank, if every rank does the same at the same time. Ranks that are
not alike run beside each other (`ranks.py`).

A step starts when all of these hold:

1. the step before it on its lane is done;
2. every step that it waits for is done, and its event has been seen (`Device.event_s`);
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

from epsc.ir.attrs import TransferAttrs
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.impls import Bound, Impl, Resource
from epsc.ir.kinds import Role
from epsc.ir.regions import Regions
from epsc.ir.schedule import HOST_LANE, Schedule, Stage, Step
from epsc.machine.balanced import size
from epsc.machine.cluster import Cluster
from epsc.machine.cost import Costs, Priced, demand, group, issue, price
from epsc.machine.timeline import Event, Timeline
from epsc.machine.work import Work

_SMS, _COPY, _COMM = "SMs", "copy engines", "communicator "


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


def waits_of(schedule: Schedule) -> dict[str, tuple[str, ...]]:
    """The steps that each step waits for: as said, or before Stage.SYNCED all that make what it reads."""
    if schedule.stage >= Stage.SYNCED:
        return {step.key: tuple(dict.fromkeys(wait.step for wait in step.waits)) for step in schedule.steps}
    return makers_of(schedule)


def makers_of(schedule: Schedule) -> dict[str, tuple[str, ...]]:
    """The steps that make what each step reads."""
    found: dict[str, tuple[str, ...]] = {}
    makers: dict[str, Regions[str]] = {}
    for step in schedule.steps:
        for ref in step.writes:
            makers.setdefault(ref.value, Regions()).add(ref.cuts, step.key)
    for step in schedule.steps:
        found[step.key] = tuple(
            dict.fromkeys(
                key
                for ref in step.reads
                if ref.value in makers
                for key in makers[ref.value].meeting(ref.cuts)
                if key != step.key
            )
        )
    return found


@dataclass
class Job:
    """A step on its way through the simulation."""

    index: int
    step: Step
    role: Role
    impl: Impl
    work: Work
    seconds: float
    issue_s: float
    takes: dict[str, int]
    """Units of each resource that it holds while it runs."""
    urgency: int
    before: str
    """The step before it on its lane."""
    waits: tuple[str, ...]
    signals: frozenset[str] = frozenset()
    """Of these, what it waits for on every rank, if they are not all alike."""
    issued: float = inf
    """When the host has issued its first kernel."""
    issue_end: float = inf
    start: float = inf
    end: float = inf
    """Once it runs: when it ends if its pace stays as it is."""
    moving: float = 1.0
    """Of a transfer: the share of its time that is not latency."""
    memory: float = 0.0
    """The share of the memory's rate that it needs at pace 1."""
    pace: float = 1.0
    own_pace: float = 1.0
    """What its pace would be if it were not for other ranks."""
    paced: float = 0.0
    """Since when it has this pace."""
    left: float = 0.0
    """Seconds at pace 1 that it still had to do then."""
    meeting: Meeting | None = None
    """Of a collective: where it meets ranks that are not alike."""
    met: float = inf
    """When it began to do its work: at once, or when the last rank came."""
    after: str = ""
    waited_for: str = ""
    host_after: str = ""
    """The host-lane step that the host stopped at last before it issued this one."""

    def begin(self, now: float) -> None:
        """Do its work from now on."""
        self.met = self.paced = now
        self.left = self.seconds
        self.end = max(now + self.seconds, self.issue_end)

    def go_on(self, now: float, pace: float) -> None:
        """Run at another pace from now on."""
        if pace != self.pace:
            self.left = max(0.0, self.left - self.pace * (now - self.paced))
            self.pace, self.paced = pace, now
            # It cannot end before its last kernel was issued.
            self.end = max(now + self.left / pace, self.issue_end)


@dataclass
class Meeting:
    """A collective of ranks that are not alike: it moves nothing before all have come, and then takes each of them as
    long as the one that has most to move.

    A rank that waits there keeps the communicator. Links are for others meanwhile, and SMs, of which it needs few: so
    two ranks that come to two collectives in another order do not block each other.
    """

    awaited: int
    came: list[tuple[Run, Job, dict[str, int]]] = field(default_factory=list)
    """With what each takes while it moves."""
    begun: bool = False

    def come(self, run: Run, job: Job, now: float) -> None:
        self.came.append((run, job, job.takes))
        self.begin(now)

    def begin(self, now: float) -> None:
        """Begin, if all are here and links are free on all of them."""
        if self.begun or len(self.came) < self.awaited:
            return
        if all(run.has_links(job, takes, now) for run, job, takes in self.came):
            self.begun = True
            seconds = max(job.seconds for _, job, _ in self.came)
            for _, job, takes in self.came:
                job.seconds, job.takes = seconds, takes
                job.begin(now)

    def go_on(self, now: float) -> None:
        """Go on at the pace of the slowest: everybody waits for what that one sends and gets."""
        pace = min(job.own_pace for _, job, _ in self.came)
        for _, job, _ in self.came:
            job.go_on(now, pace)

    def settle(self) -> bool:
        """The moment is over: whoever came waits. Whether that gave anything back."""
        gave = False
        for _, job, takes in () if self.begun else self.came:
            kept = {name: n for name, n in takes.items() if name.startswith(_COMM)}
            gave, job.takes = gave or job.takes != kept, kept
        return gave


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
        waits = waits_of(self.schedule)
        urgency = {lane.name: lane.priority for lane in self.schedule.lanes}
        last: dict[str, str] = {}
        self.room = {_SMS: self.schedule.chip_sms, _COPY: max(1, self.cluster.device.copy_engines)}
        for index, step in enumerate(self.schedule.steps):
            priced = self.prices.get(step.key) or price(
                self.schedule, step, self.cluster, self.load, self.most, self.share
            )
            self.prices[step.key] = priced
            impl, amount, seconds = priced.impl, priced.work, priced.seconds
            takes = self._takes(step, impl)
            for name in takes:
                self.room.setdefault(name, 1)
            if self.costs:
                seconds = self.costs(self.schedule, step, self.cluster, self.load)
            floor = priced.floor
            self.jobs[step.key] = Job(
                index,
                step,
                self.schedule.node(step).info.role,
                impl,
                amount,
                seconds,
                0.0 if self.graph else issue(impl, amount, self.cluster.device),
                takes,
                urgency.get(step.lane, 0),
                last.get(step.lane, ""),
                waits[step.key],
                moving=max(0.0, 1 - floor / seconds) if seconds else 0.0,
                memory=demand(amount, seconds, self.cluster.device),
            )
            last[step.lane] = step.key

    def _takes(self, step: Step, impl: Impl) -> dict[str, int]:
        role = self.schedule.node(step).info.role
        takes: dict[str, int] = {}
        if role in (Role.CONTROL, Role.HOST):
            return takes
        if role is Role.TRANSFER and step.comm:
            takes[f"{_COMM}{step.comm}"] = 1
        if impl.cost.bound is Bound.LATENCY:
            return takes
        if Resource.SMS in impl.occupies:
            free = self.cluster.device.memory_sms if role is Role.MEMORY else self.schedule.chip_sms
            takes[_SMS] = min(step.sms or free, self.schedule.chip_sms)
        if Resource.COPY_ENGINE in impl.occupies:
            takes[_COPY] = 1
        if role is Role.TRANSFER or Resource.INTRA_LINK in impl.occupies:
            if Resource.HOST_LINK in impl.occupies:
                return takes | {"host link": 1}
            # A group within a node leaves the links between nodes to others; one with a rank of each node the others.
            near, ranks = group(self.schedule, step, self.cluster)
            takes |= {"link": 1} if near > 1 or ranks == 1 else {}
            takes |= {"link between nodes": 1} if near < ranks else {}
        return takes

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
        """The measured pace of both beside each other; None if they are no transfer and product, or never measured."""
        if one.role is Role.COMPUTE:
            one, other = other, one
        if one.role is not Role.TRANSFER or other.role is not Role.COMPUTE:
            return None
        known = self.cluster.device.beside
        pair = known.get((one.impl.name, other.impl.name)) or known.get((one.impl.name, "*"))
        return 1 - one.moving * (1 - pair.pace(other.step.sms or self.schedule.chip_sms)) if pair else None

    def _host(self) -> Generator[None, float, None]:
        """The host: told the time, it issues as far ahead as it can, up to a step of its own that is not done."""
        clock, stopped_by = self._replay() if self.graph else self.clock, ""
        now = yield
        for job in self.jobs.values():
            job.host_after = stopped_by
            if job.step.lane == HOST_LANE:
                job.issued = job.issue_end = clock
                while job.end > now:
                    now = yield
                clock, stopped_by = job.end, job.step.key
            else:
                launches = max(1, job.work.launches)
                step = min(job.issue_s, self.cluster.device.step_s)
                job.issued = clock + step + (job.issue_s - step) / launches
                clock = job.issue_end = clock + job.issue_s
        self.issued = clock
        while True:
            yield

    def issuing(self) -> float:
        """Seconds that the host is busy with all of it."""
        return sum(job.issue_s for job in self.jobs.values() if job.step.lane != HOST_LANE) + (
            self._replay() if self.graph else 0.0
        )

    def _replay(self) -> float:
        """To launch a graph, and to copy its inputs to where it reads them."""
        device, graph = self.cluster.device, self.schedule.graph
        return device.graph_s + sum(
            2 * size(graph.types[name], self.schedule, graph.nodes[0], self.load) / device.hbm_bytes_per_s
            for name in graph.inputs
        )

    def _constraints(self, job: Job) -> list[tuple[float, int, str, str]]:
        """(time, rank, step, words) for each thing other than resources that holds the job; the last one binds."""
        held = [(job.issued, 0, job.host_after, "the host to issue it")]
        if job.before:
            held.append((self.jobs[job.before].end, 1, job.before, f"{job.before} on its lane"))
        for wait in job.waits:
            if wait in self.jobs:
                other = self.jobs[wait]
                delay = self.cluster.device.event_s if other.step.lane != job.step.lane else 0.0
                held.append((other.end + delay, 2, wait, f"{wait} to be done"))
                if wait in job.signals:
                    there = max(run.jobs[wait].end for run in self.others)
                    held.append((there + delay, 2, wait, f"{wait} of another rank"))
        return held

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
            if job.meeting:
                job.meeting.come(self, job, now)
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
        others = busy if name != _SMS else [other for other in busy if self._pair(job, other) is None]
        return sum(other.takes.get(name, 0) for other in others) + job.takes[name] <= self.room[name]

    def has_links(self, job: Job, takes: dict[str, int], now: float) -> bool:
        """Whether the links that a collective takes are free, once its ranks are here."""
        busy = [other for other in self.running if other is not job and other.end > now]
        names = [name for name in takes if name != _SMS and not name.startswith(_COMM)]
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
        events = []
        for job in sorted(self.jobs.values(), key=lambda job: (job.start, job.index)):
            node = self.schedule.node(job.step)
            events.append(
                Event(
                    step=job.step.key,
                    node=job.step.node,
                    lane=job.step.lane,
                    role=job.role,
                    start=job.start,
                    end=job.end,
                    after=job.after,
                    waited_for=job.waited_for,
                    chunk=job.step.cuts[0].index if job.step.cuts else None,
                    direction=node.attrs.direction if isinstance(node.attrs, TransferAttrs) else None,
                    sms=job.step.sms,
                    impl=job.impl.name,
                    work=job.work,
                    alone=max(job.met - job.start + job.seconds, min(job.issue_end, job.end) - job.start),
                    met=job.met if job.meeting else None,
                )
            )
        named = [lane.name for lane in self.schedule.lanes]
        used = dict.fromkeys([*named, *(step.lane for step in self.schedule.steps)])
        present = {event.lane for event in events}
        return Timeline(
            self.schedule.name,
            self.load,
            tuple(lane for lane in used if lane in present),
            tuple(events),
            self.issuing(),
        )
