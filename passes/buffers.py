"""buffers: where rows live, and which buffers share memory."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import ClassVar

from epsc.ir.attrs import SlotAttrs
from epsc.ir.dims import Axis, Cuts, Dim
from epsc.ir.graph import Graph
from epsc.ir.schedule import Buffer, Schedule, Stage, Step, Storage
from epsc.passes.questions import is_row_op, one_sided_rows
from epsc.passes.wishes import Context
from epsc.proof.happens import Happens

# Rows that an index addresses from the start of the whole value, so that all rows must be in one piece.
_WHOLE_READS = (
    *("regroup", "unpermute", "unpermute_sum", "all2all", "pick_rows", "place_rows"),
    *("all_gather_rows", "all_gather_copies", "reduce_scatter_rows"),
)
_WHOLE_WRITES = (
    *("permute", "ungroup", "all2all"),
    *("all_gather_rows", "all_gather_copies", "reduce_scatter_rows"),
)


@dataclass(frozen=True)
class Buffers:
    """Give every value of rows a buffer, and let buffers share a storage when their uses cannot meet.

    A value that is made and read chunk by chunk gets a buffer per chunk, so that chunks can follow each other through
    the same memory. Sharing never adds a wait: a buffer joins a storage only if everything that used the storage before
    is certainly finished when the buffer is first written. Weights from the host take turns in their slots.
    """

    name: ClassVar[str] = "buffers"

    share: bool = True
    """False: a storage for every buffer. More memory; nothing else changes."""

    def __call__(self, schedule: Schedule, context: Context) -> Schedule:  # noqa: ARG002 - every pass is called alike
        graph = schedule.graph
        uses = _uses(schedule)
        happens = Happens.of(schedule)
        known_from = _rows_known(schedule)
        storages: list[_Storage] = []
        starts: list[int] = []  # of the storages' first uses: ascending, because buffers come in the order of theirs
        buffers: list[Buffer] = []
        slots: dict[tuple[str, int], _Storage] = {}
        for (value, cuts), steps in uses.items():
            tensor = graph.types[value].cut(cuts)
            size = tensor.numel
            home = None
            symmetric = graph.maker[value].info.one_sided
            slot = _slot(graph, value, cuts)
            if slot is not None:
                home = slots.get((value, slot))
            elif self.share and value not in graph.results and not symmetric:
                # Memory is taken before a storage's first use, and by then every size must be known to the host.
                known = bisect_left(starts, known_from.get(size.symbol, -1))
                home = next((s for s in storages[known:] if s.takes(steps, happens, graph, value)), None)
            if home is None:
                closed = symmetric or value in graph.results or slot is not None
                home = _Storage(f"s{len(storages)}", value, {}, closed, symmetric)
                storages.append(home)
                if slot is not None:
                    slots[value, slot] = home
                starts.append(steps[0][0])
            home.sizes[size] = None
            home.last = {step.lane: step.key for _, step in steps}
            buffers.append(Buffer(value, tensor, home.name, cuts))
        return replace(
            schedule,
            stage=Stage.BUFFERED,
            buffers=tuple(buffers),
            storages=tuple(
                Storage(s.name, graph.types[s.value].dtype, _largest(list(s.sizes)), s.symmetric) for s in storages
            ),
        )


def _slot(graph: Graph, value: str, cuts: Cuts) -> int | None:
    """The slot that an expert's weight comes into; none for anything else."""
    attrs = graph.maker[value].attrs
    if not isinstance(attrs, SlotAttrs):
        return None
    return cuts[0].index % attrs.slots if cuts else 0


@dataclass
class _Storage:
    name: str
    value: str
    """The value that it was made for: its first user, of its element type."""
    sizes: dict[Dim, None]
    """Each once, in the order in which they came."""
    closed: bool
    """It holds a result, which outlives the forward pass, or what other ranks write."""
    symmetric: bool = False
    last: dict[str, str] = field(default_factory=dict)
    """Of what uses the buffer that came to live here last: the last step of each lane."""

    def takes(self, steps: list[tuple[int, Step]], happens: Happens, graph: Graph, value: str) -> bool:
        """Whether a buffer of `value`, used by `steps` (the first of them writes it), may live here too."""
        if self.closed or graph.types[self.value].dtype != graph.types[value].dtype:
            return False
        # Steps are in issue order, and lanes keep it: of each lane, the last old and the first new one speak for all.
        new: dict[str, str] = {}
        for _, step in steps:
            if any(ref.value == value for ref in step.writes):
                new.setdefault(step.lane, step.key)
        return all(happens.before(a, b) for a in self.last.values() for b in new.values())


def _uses(schedule: Schedule) -> dict[tuple[str, Cuts], list[tuple[int, Step]]]:
    """The steps that use each buffer-to-be, in issue order; buffers in the order of their first use."""
    graph = schedule.graph
    whole: set[str] = set()
    for step in schedule.steps:
        kind = graph.node[step.node].kind
        if kind in _WHOLE_READS:
            whole.add(step.reads[0].value)
        if kind in _WHOLE_WRITES:
            whole |= {ref.value for ref in step.writes}
    shared_cuts = _split_alike(schedule)
    found: dict[tuple[str, Cuts], list[tuple[int, Step]]] = {}
    for i, step in enumerate(schedule.steps):
        for ref in (*step.writes, *step.reads):
            maker = graph.maker.get(ref.value)
            if maker is None or not is_row_op(maker):
                continue
            cuts = ref.cuts if ref.value in shared_cuts else ()
            if ref.value in whole or not known_rows(graph, ref.value):
                cuts = tuple(cut for cut in cuts if cut.axis is Axis.COLUMNS)
            if maker.info.one_sided or ref.value in graph.results:
                cuts = ()  # one piece of memory that outlives the forward
            steps = found.setdefault((ref.value, cuts), [])
            if not steps or steps[-1][0] != i:
                steps.append((i, step))
    return found


def known_rows(graph: Graph, value: str) -> bool:
    """Whether the host knows how many rows each part of a value has, as memory of its own needs."""
    symbol = graph.types[value].shape[0].symbol
    return not (symbol.startswith("rows(") and one_sided_rows(graph, symbol))


def _split_alike(schedule: Schedule) -> set[str]:
    """Values whose makers and readers all use the same chunks."""
    made: dict[str, set[Cuts]] = {}
    read: dict[str, set[Cuts]] = {}
    for step in schedule.steps:
        for ref in step.writes:
            made.setdefault(ref.value, set()).add(ref.cuts)
        for ref in step.reads:
            read.setdefault(ref.value, set()).add(ref.cuts)
    return {value for value, cuts in made.items() if read.get(value, cuts) == cuts}


def _rows_known(schedule: Schedule) -> dict[str, int]:
    """For each `rows(d)` and `sends(d)`: the position of the step after which the host knows it."""
    return {
        f"{counted}({step.node.removesuffix('.sizes')})": i
        for counted in ("rows", "sends", "gets")
        for i, step in enumerate(schedule.steps)
        if schedule.graph.node[step.node].kind == "sizes"
    }


def _largest(sizes: list[Dim]) -> tuple[Dim, ...]:
    """Sizes that no other of them is certainly at least as large as: fewer rows, or rows of one chunk only."""
    best: dict[tuple[str, Cuts], Dim] = {}
    for size in sizes:
        key = size.symbol, size.cuts
        if key not in best or best[key].scale < size.scale:
            best[key] = size
    whole = {size.symbol: size.scale for size in best.values() if not size.cuts}
    return tuple(size for size in best.values() if not size.cuts or whole.get(size.symbol, 0) < size.scale)
