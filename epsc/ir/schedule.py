"""Schedule: what was *decided*. Every op of a Graph cut into steps, in issue order, with lanes, waits and buffers.

All ranks run the same Schedule (SPMD); what differs between ranks is said relatively (`peer` cuts count from the own
rank). A Schedule grows through stages; `Stage` says what each one adds, and `epsc.proof` what each one must satisfy.
`Schedule.parse(str(s)) == s`.

The five ways in which a step comes after another:
program order on its lane (a lane is a CUDA stream, or on CPU a worker of its own); a `Wait` for a step of another
lane (a CUDA event, or a work handle); a `Wait` for a step of every rank (a signal: a number that each rank stores into
the memory of the others after it has written there); the host, which issues steps in the order of `steps` and stops at
a step on the host lane until it is done; and transitively through any of these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from functools import cached_property

from epsc.ir.attrs import CollectiveAttrs
from epsc.ir.dims import Axis, Cuts, Dim, DType, Tensor, cuts_parse, cuts_text
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import Graph, Node
from epsc.ir.impls import Choice
from epsc.ir.kinds import Role
from epsc.ir.mesh import DeviceMesh
from epsc.ir.text import split


class Stage(IntEnum):
    """How far a Schedule has been decided. Each stage keeps what the stages before it decided."""

    CHOSEN = 0
    """One step per op, in the Graph's order, with its implementation."""
    CUT = 1
    """Steps are chunks; `layouts` says how rows lie."""
    PLACED = 2
    """Every step has a lane, a communicator if it transfers, and its SMs."""
    ORDERED = 3
    """`steps` is the issue order."""
    SYNCED = 4
    """Steps wait for all that they need from other lanes."""
    BUFFERED = 5
    """Every value of rows has a buffer in a storage: ready to be written out."""


@dataclass(frozen=True, order=True)
class Ref:
    """A use of a value: all of it, or the region that the cuts leave."""

    value: str
    cuts: Cuts = ()

    def __str__(self) -> str:
        return f"{self.value}{cuts_text(self.cuts)}"

    @staticmethod
    def parse(text: str) -> Ref:
        name, cuts = _name_and_cuts(text)
        return Ref(name, cuts)


class Hazard(StrEnum):
    """Why one use of a buffer must come after another."""

    RAW = "raw"
    """It reads what the other wrote."""
    WAR = "war"
    """It overwrites what the other reads."""
    WAW = "waw"
    """It overwrites what the other wrote."""


@dataclass(frozen=True)
class Wait:
    """This step starts after `step` has finished, because of what both do with `value`."""

    step: str
    value: str
    hazard: Hazard
    everywhere: bool = False
    """It has finished on every rank: they signal it, because they write here."""

    def __str__(self) -> str:
        return f"{self.step}({self.value} {self.hazard}{' everywhere' if self.everywhere else ''})"

    @staticmethod
    def parse(text: str) -> Wait:
        found = re.fullmatch(r"(.+)\((\S+) (raw|war|waw)( everywhere)?\)", text)
        if not found:
            raise EpsError(Diagnostic("bad-wait", f"`{text}` does not read `STEP(VALUE raw)`"))
        return Wait(found[1], found[2], Hazard(found[3]), bool(found[4]))


@dataclass(frozen=True)
class Lane:
    """A place where steps run one after the other: a CUDA stream; `host` is the host itself."""

    name: str
    role: Role
    priority: int = 0
    """CUDA stream priority: lower goes first. Transfers go first, or a full chip would keep them waiting."""

    def __str__(self) -> str:
        return f"lane {self.name}: {self.role} priority {self.priority}"


HOST_LANE = "host"


@dataclass(frozen=True)
class Step:
    """One op, or one chunk of it."""

    node: str
    impl: Choice
    reads: tuple[Ref, ...]
    writes: tuple[Ref, ...]
    cuts: Cuts = ()
    lane: str = ""
    comm: str = ""
    """The communicator that a transfer is issued on; each has one order of transfers, the same on every rank."""
    sms: int = 0
    """SMs that this step keeps to itself (a transfer) or is limited to (a GEMM); 0: as many as it likes."""
    waits: tuple[Wait, ...] = ()

    @cached_property
    def key(self) -> str:
        return f"{self.node}{cuts_text(self.cuts)}"

    def __str__(self) -> str:
        parts = [f"step {self.key} = {self.impl}"]
        if self.lane:
            parts.append(f"on {self.lane}")
        if self.comm:
            parts.append(f"via {self.comm}")
        if self.sms:
            parts.append(f"sms {self.sms}")
        for word, items in (("reads", self.reads), ("writes", self.writes), ("waits", self.waits)):
            if items:
                parts.append(f"{word} {', '.join(map(str, items))}")
        return "; ".join(parts)

    @staticmethod
    def parse(text: str) -> Step:
        found = re.fullmatch(r"step (\S+) = ([^;]+)", (pieces := split(text, ";"))[0])
        if not found:
            raise EpsError(Diagnostic("bad-step", f"`{text}` does not read `step NAME = IMPL; on LANE; ...`"))
        node, cuts = _name_and_cuts(found[1])
        said = dict.fromkeys(("on", "via", "sms", "reads", "writes", "waits"), "")
        for piece in pieces[1:]:
            word, _, rest = piece.partition(" ")
            if word not in said:
                raise EpsError(Diagnostic("bad-step", f"`{piece}` is no part of a step"))
            said[word] = rest
        return Step(
            node,
            Choice.parse(found[2]),
            tuple(map(Ref.parse, split(said["reads"], ","))),
            tuple(map(Ref.parse, split(said["writes"], ","))),
            cuts,
            said["on"],
            said["via"],
            int(said["sms"] or 0),
            tuple(map(Wait.parse, split(said["waits"], ","))),
        )


@dataclass(frozen=True)
class Layout:
    """How the rows of one dispatch lie in its send and receive buffers: sorted by chunk of `axis`, then by rank, then
    by local expert, then by token. One chunk is thus one contiguous piece, which an all2all needs."""

    dispatch: str
    axis: Axis | None = None
    count: int = 1

    def __str__(self) -> str:
        return f"layout {self.dispatch}: {f'{self.axis} {self.count}' if self.axis else 'whole'}"


@dataclass(frozen=True)
class Storage:
    """A piece of device memory for one forward pass, as large as the largest of `sizes` (in elements)."""

    name: str
    dtype: DType
    sizes: tuple[Dim, ...]
    symmetric: bool = False
    """It outlives the forward pass, and every rank has one that the others may write into."""

    def __str__(self) -> str:
        kept = "symmetric " if self.symmetric else ""
        return f"storage {self.name}: {kept}{self.dtype} max {', '.join(map(str, self.sizes))}"


@dataclass(frozen=True)
class Buffer:
    """Where a value (or one chunk of it) lives: at the start of a storage, which others may use at other times."""

    value: str
    type: Tensor
    storage: str
    cuts: Cuts = ()

    @cached_property
    def key(self) -> str:
        return f"{self.value}{cuts_text(self.cuts)}"

    def __str__(self) -> str:
        return f"buffer {self.key}: {self.type} in {self.storage}"


@dataclass(frozen=True)
class Schedule:
    name: str
    graph: Graph
    ep: int
    """Ranks that share the experts."""
    chip_sms: int
    """SMs of one GPU of the cluster."""
    stage: Stage
    steps: tuple[Step, ...]
    layouts: tuple[Layout, ...] = ()
    lanes: tuple[Lane, ...] = ()
    storages: tuple[Storage, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    order: tuple[tuple[str, str], ...] = field(default=())
    """Pairs of nodes that a schedule asked to be issued one before the other, beyond what data demands."""
    meshes: tuple[DeviceMesh, ...] = ()
    """How ranks are arranged, if they do more than to share experts; all meshes are over the same ranks."""

    @property
    def ranks(self) -> int:
        """All ranks that run it."""
        return self.meshes[0].ranks if self.meshes else self.ep

    def mesh_of(self, axis: str) -> DeviceMesh:
        """The mesh that has an axis."""
        found = self.meshes or (DeviceMesh("experts", (("ep", self.ep), ("etp", 1))),)
        return next(mesh for mesh in found if axis in dict(mesh.axes))

    @cached_property
    def same_tokens(self) -> tuple[tuple[int, int], ...]:
        """Axes (stride and size) over whose ranks the inputs of the layer are the same."""
        axes: dict[str, None] = {}
        for node in self.graph.nodes:
            if node.kind == "own_rows":
                axes["ep"] = None
            elif node.kind == "split_tokens" and isinstance(node.attrs, CollectiveAttrs):
                axes[node.attrs.mesh] = None
        found = [(self.mesh_of(axis).stride(axis), self.mesh_of(axis).size(axis)) for axis in axes]
        return tuple(found)

    @cached_property
    def step(self) -> dict[str, Step]:
        return {step.key: step for step in self.steps}

    @cached_property
    def layout(self) -> dict[str, Layout]:
        return {layout.dispatch: layout for layout in self.layouts}

    @cached_property
    def capturable(self) -> bool:
        """Whether its program can be a CUDA graph: rows travel one-sided, and the host is asked for nothing."""
        infos = [self.node(step).info for step in self.steps]
        return any(info.one_sided for info in infos) and all(info.role is not Role.HOST for info in infos)

    def node(self, step: Step) -> Node:
        return self.graph.node[step.node]

    def with_steps(self, steps: tuple[Step, ...]) -> Schedule:
        return replace(self, steps=steps)

    def __str__(self) -> str:
        head = f"schedule {self.name}: ep {self.ep}, sms {self.chip_sms}, stage {self.stage.name.lower()} {{"
        order = [f"order {first} before {then}" for first, then in self.order]
        items = [*self.meshes, *self.layouts, *self.lanes, *order, *self.storages, *self.buffers, *self.steps]
        return "\n".join([str(self.graph), head, *(f"  {item}" for item in items), "}"])

    @staticmethod
    def parse(text: str) -> Schedule:
        """The schedule that `str` printed, spans left out. Raises EpsError with the line that does not fit."""
        graph_text, marker, rest = text.partition("\nschedule ")
        lines = [line.strip() for line in (marker.strip() + " " + rest).strip().splitlines()]
        head = re.fullmatch(r"schedule (\S+): ep (\d+), sms (\d+), stage (\w+) \{", lines[0])
        if not head or lines[-1] != "}" or head[4].upper() not in Stage.__members__:
            raise EpsError(
                Diagnostic("bad-schedule", "a schedule reads `schedule NAME: ep N, sms N, stage S {` ... `}`")
            )
        steps: list[Step] = []
        layouts: list[Layout] = []
        lanes: list[Lane] = []
        storages: list[Storage] = []
        buffers: list[Buffer] = []
        order: list[tuple[str, str]] = []
        meshes: list[DeviceMesh] = []
        for line in lines[1:-1]:
            if line.startswith("step "):
                steps.append(Step.parse(line))
            elif line.startswith("mesh "):
                meshes.append(DeviceMesh.parse(line))
            elif found := re.fullmatch(r"layout (\S+): (?:whole|(\w+) (\d+))", line):
                layouts.append(Layout(found[1], Axis(found[2]) if found[2] else None, int(found[3] or 1)))
            elif found := re.fullmatch(r"lane (\S+): (\w+) priority (-?\d+)", line):
                lanes.append(Lane(found[1], Role(found[2]), int(found[3])))
            elif found := re.fullmatch(r"storage (\S+): (symmetric )?(\w+) max (.*)", line):
                sizes = tuple(map(Dim.parse, split(found[4], ",")))
                storages.append(Storage(found[1], DType(found[3]), sizes, bool(found[2])))
            elif found := re.fullmatch(r"buffer (\S+): (.*) in (\S+)", line):
                value, cuts = _name_and_cuts(found[1])
                buffers.append(Buffer(value, Tensor.parse(found[2]), found[3], cuts))
            elif found := re.fullmatch(r"order (\S+) before (\S+)", line):
                order.append((found[1], found[2]))
            else:
                raise EpsError(Diagnostic("bad-schedule", f"`{line}` is no part of a schedule"))
        return Schedule(
            head[1],
            Graph.parse(graph_text),
            int(head[2]),
            int(head[3]),
            Stage[head[4].upper()],
            tuple(steps),
            tuple(layouts),
            tuple(lanes),
            tuple(storages),
            tuple(buffers),
            tuple(order),
            tuple(meshes),
        )


def _name_and_cuts(text: str) -> tuple[str, Cuts]:
    name, _, cuts = text.partition("[")
    return name, cuts_parse(cuts.rstrip("]"))
