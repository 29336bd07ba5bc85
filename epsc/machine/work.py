"""How much there is to do in a step: FLOP, bytes and launches, before any rate is known.

Bytes of device memory are counted as if caches held nothing but what one op reads twice: inputs once, outputs once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod

from epsc.ir.attrs import (
    CallAttrs,
    CollectiveAttrs,
    Direction,
    ExpertGemmActAttrs,
    ExpertGemmAttrs,
    SlotAttrs,
    TransferAttrs,
)
from epsc.ir.dims import Axis
from epsc.ir.impls import Impl, impls_of
from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule, Step
from epsc.machine.balanced import (
    bytes_of,
    chosen_share,
    covered,
    elements,
    group_experts,
    known_numbers,
    read_by_group,
    region,
    row_count,
)

_GATHERS = frozenset({"permute", "regroup", "ungroup", "unpermute", "pick_rows"})
_SUMS = frozenset({"unpermute_sum", "weighted_sum", "sum_copies"})
_CALL_GEMMS = 4
"""A module that nobody looked into is taken for the four projections of an attention block."""


_ELEMENTWISE = frozenset({"activation", "add", "mul"})
_BIAS_LAUNCHES = 5
"""Two to number rows and find their experts, one to keep what lies past the last in range, a gather and an add."""


@dataclass(frozen=True)
class Work:
    """What one step does on one rank."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    """Read plus written, weights included."""
    weight_bytes: float = 0.0
    """The part of `hbm_bytes` that are weights."""
    padding_bytes: float = 0.0
    """The part of `hbm_bytes` that copies rows to padded places and back, or puts them in order, in launches of their
    own."""
    after_bytes: float = 0.0
    """Read and written by a bias or an activation in launches of their own; not part of `hbm_bytes`."""
    link_bytes: float = 0.0
    """Rows that leave for another rank, those that pass through this one too; as many come in."""
    host_bytes: float = 0.0
    """Weights that come from the memory of the host."""
    launches: int = 0
    rows: float = 0.0
    chosen: float = 1.0
    """The share of the experts that the step works for that some token chose, and whose weights are read."""
    turns: float = 0.0
    """Rows, or pieces of rows, that the programs of a one-sided transfer by SMs take one after the other."""

    def of_rows(self, share: float) -> Work:
        """The same for so many times the rows, as they are on a rank whose experts are chosen more often."""
        if share == 1.0:
            return self
        moved = self.weight_bytes + (self.hbm_bytes - self.weight_bytes) * share
        byrows = {name: getattr(self, name) * share for name in _BY_ROWS}
        return replace(self, hbm_bytes=moved, **byrows)


_BY_ROWS = ("flops", "padding_bytes", "after_bytes", "link_bytes", "rows")


def of_arrived(schedule: Schedule, step: Step) -> bool:
    """Whether it works on rows that arrived: those are more on a rank whose experts are chosen more often."""
    symbols = (schedule.graph.types[ref.value].shape[0].symbol for ref in (*step.reads, *step.writes))
    return any(symbol.startswith("rows(") for symbol in symbols)


def picked(schedule: Schedule, step: Step, load: int, backend: str, share: float = 1.0) -> Impl:
    """The implementation that the step's choice takes at this load, for `share` times the rows."""
    return impls_of(schedule.node(step).kind)[step.impl.pick(known_numbers(step, schedule, load, backend, share))]


def remote_share(schedule: Schedule, step: Step) -> float:
    """The share of a transfer's rows that is for other ranks: (ep - 1) / ep, or what a cut by peer leaves of it."""
    first, last = 0, schedule.ep
    for cut in step.cuts:
        if cut.axis is Axis.PEER:
            first = cut.index * schedule.ep // cut.count
            last = first + elements(cut, schedule.ep)
    # Peer 0 is this rank itself.
    return (last - max(first, 1)) / (last - first) if last > max(first, 1) else 0.0


def sent_bytes(schedule: Schedule, step: Step, reads: float, writes: float) -> float:
    """Bytes that leave this rank, by the ring that is best for large ones: an all_reduce is a reduce_scatter, then an
    all_gather."""
    node = schedule.node(step)
    if node.kind not in _RINGS or not isinstance(node.attrs, CollectiveAttrs | TransferAttrs):
        return writes * remote_share(schedule, step)
    ranks = schedule.mesh_of(node.attrs.mesh).size(node.attrs.mesh)
    return _RINGS[node.kind] * max(reads, writes) * (ranks - 1) / ranks


def _both_levels(schedule: Schedule) -> float:
    """How often a row travels that goes within its node and then to another: it may stay where it is either time."""
    mesh = schedule.mesh_of("inter")
    return 2 - 1 / mesh.size("intra") - 1 / mesh.size("inter")


_RINGS = {
    "all_reduce": 2,
    "all_gather": 1,
    "reduce_scatter": 1,
    **dict.fromkeys(("all_gather_rows", "all_gather_copies", "reduce_scatter_rows"), 1),
}
"""How often a collective sends, around the ring, the larger of what it reads and writes."""


def work(
    schedule: Schedule,
    step: Step,
    load: int,
    backend: str = "cuda",
    impl: Impl | None = None,
    most: int | None = None,
) -> Work:
    """What `step` does when every rank has `load` tokens and routing is balanced; by `impl`, else by its choice's.

    `most`: tokens per rank that the program is made for, if not `load`.
    """
    node = schedule.node(step)
    impl = impl or picked(schedule, step, load, backend)
    rows = row_count(step, schedule, load)
    reads = sum(bytes_of(ref, schedule, node, load) for ref in dict.fromkeys(step.reads))
    reads *= read_by_group(step, schedule)
    writes = sum(bytes_of(ref, schedule, node, load) for ref in dict.fromkeys(step.writes))
    chosen = chosen_share(schedule, node, load)
    weights = _weight_bytes(schedule, step) * chosen
    launches = impl.cost.launches or max(1, group_experts(step, schedule))
    if isinstance(node.attrs, SlotAttrs):
        # Of experts that nobody chose nothing is copied.
        brought = writes * chosen_share(schedule, schedule.graph.users[node.outs[0]][0], load)
        return Work(hbm_bytes=brought, host_bytes=brought, launches=launches, rows=rows)
    if isinstance(node.attrs, ExpertGemmAttrs) and node.attrs.slots:
        slots = [ref for ref in step.reads if ref.value == node.ins[-1]]
        reads -= sum(bytes_of(ref, schedule, node, load) for ref in slots)  # these are the weights
    flops, moved, padding, after, link = 0.0, reads + writes + weights, 0.0, 0.0, 0.0
    if node.kind == "route" or (node.info.role is Role.COMPUTE and node.params):
        flops = 2 * rows * _weight_elements_per_row(schedule, step)
    if impl.cost.activation_after and isinstance(node.attrs, ExpertGemmActAttrs):
        # The product writes gate and up, and the activation reads them to write what the step does.
        launches += 1
        wide = writes * node.attrs.out / node.attrs.width
        moved += wide - writes
        after = wide + writes
    if impl.cost.bias_after and isinstance(node.attrs, ExpertGemmAttrs) and node.attrs.bias:
        # The bias of each row's expert is gathered, then added.
        launches += _BIAS_LAUNCHES
        made = writes * (node.attrs.out / node.attrs.width if isinstance(node.attrs, ExpertGemmActAttrs) else 1)
        after += 4 * made
    if after or node.kind in _ELEMENTWISE:
        whole = covered(step, schedule, load, most or load)
        after *= whole
        moved *= whole if node.kind in _ELEMENTWISE else 1
    if impl.cost.padding:
        padding = 2 * (reads + writes)
        moved += padding
    if isinstance(node.attrs, CallAttrs) and step.writes:
        width = region(step.writes[0], schedule).shape[-1].scale
        guess = 0.0 if node.attrs.bytes or node.attrs.us else 2 * rows * width * width * _CALL_GEMMS
        flops = node.attrs.flops.at(rows) if node.attrs.flops else guess
        moved += node.attrs.bytes.at(rows)
    if node.kind in _GATHERS:
        moved = 2 * writes  # reads the rows it writes; a source that is cut or repeated says nothing
    if node.kind in _SUMS:
        moved = writes * (1 + getattr(node.attrs, "top_k", 1))
    if node.info.role is Role.TRANSFER:
        link = sent_bytes(schedule, step, reads, writes)
        if impl.cost.two_level:
            link, padding = writes * _both_levels(schedule), 4 * writes
        # A collective moves what it writes; one that gathers or sums what it sends reads that.
        moved = writes + (reads if node.info.one_sided else writes) + padding
    elif node.info.one_sided:
        link = sent_bytes(schedule, step, reads, writes)
    turns = _turns(schedule, step, impl, load) if node.info.one_sided else 0.0
    return Work(flops, moved, weights, padding, after, link, 0.0, launches, rows, chosen, turns)


def _turns(schedule: Schedule, step: Step, impl: Impl, load: int) -> float:
    """A transfer to the experts goes over the tokens here; one that goes home over the tokens of every rank, whichever
    of their rows it sends."""
    if not impl.cost.turn_columns or not step.writes:
        return 0.0
    attrs = schedule.node(step).attrs
    home = isinstance(attrs, TransferAttrs) and attrs.direction is Direction.COMBINE
    width = region(step.writes[0], schedule).shape[-1].scale
    pieces = min((ceil(width / columns) * columns, ceil(width / columns)) for columns in impl.cost.turn_columns)[1]
    return load * (schedule.ep if home else 1) * pieces


def _weight_bytes(schedule: Schedule, step: Step) -> float:
    total = 0.0
    for name in schedule.node(step).params:
        param = schedule.graph.param[name]
        size = float(param.type.dtype.bytes * prod(dim.scale for dim in param.local.shape))
        if param.sharded:
            size *= group_experts(step, schedule) / max(1, param.type.shape[0].scale)
        total += size * _column_share(step)
    return total


def matrix(schedule: Schedule, step: Step) -> tuple[float, float] | None:
    """Columns that a product makes and reads; None for what has no matrix."""
    node = schedule.node(step)
    shapes = [shape for name in node.params if len(shape := schedule.graph.param[name].local.shape) >= 2]
    if not shapes:
        return None
    # A bias is [out] or, per expert, [experts, out]: the matrix is the first parameter.
    out, wide = (dim.scale for dim in shapes[0][-2:])
    if getattr(node.attrs, "transposed", False):
        out, wide = wide, out
    return out * _column_share(step), wide


def _weight_elements_per_row(schedule: Schedule, step: Step) -> float:
    """Weights that one row meets: of a single expert, if they are sharded by expert."""
    out, wide = matrix(schedule, step) or (0, 0)
    return out * wide


def _column_share(step: Step) -> float:
    share = 1.0
    for cut in step.cuts:
        if cut.axis is Axis.COLUMNS:
            share /= cut.count
    return share
