"""Sizes that only a run knows, as they are when routing is balanced: every expert is chosen equally often.

Then a rank with T tokens and k choices each sends `k*T` rows and receives as many, `k*T/ep` of them to and from
each rank and `k*T/experts` for each expert.
"""

from __future__ import annotations

from functools import cache
from math import prod, sqrt
from statistics import NormalDist

from epsc.ir.attrs import ExpertGemmAttrs, PlaceAttrs, RouteAttrs, RowsAttrs, SlotAttrs, TransferAttrs
from epsc.ir.dims import Axis, Cut, Cuts, Dim, Tensor
from epsc.ir.graph import Node
from epsc.ir.impls import Metric
from epsc.ir.schedule import Ref, Schedule, Step


def elements(cut: Cut, n: int) -> int:
    """How many of the n elements on its axis a cut holds (see `Cut`)."""
    return (cut.index + 1) * n // cut.count - cut.index * n // cut.count


def local_experts(schedule: Schedule, node: Node) -> int:
    """Experts of the op's layer that live on one rank; 0 for an op that knows no experts."""
    if isinstance(node.attrs, RouteAttrs | RowsAttrs | TransferAttrs | ExpertGemmAttrs | SlotAttrs):
        return max(1, node.attrs.experts // schedule.ep)
    return 0


def share(cuts: Cuts, schedule: Schedule, node: Node, load: int) -> float:
    """The share of the rows that the cuts leave. Columns and weight slots cut no rows."""
    held, whole = 1, 1
    for cut in cuts:
        if cut.axis in (Axis.COLUMNS, Axis.SLOT):
            continue
        n = {
            Axis.EXPERT_GROUP: local_experts(schedule, node),
            Axis.PEER: schedule.ep,
            Axis.TOKENS: load,
        }.get(cut.axis, 0)
        held *= elements(cut, n) if n else 1
        whole *= n or cut.count
    return held / whole


def count(dim: Dim, schedule: Schedule, node: Node, load: int) -> float:
    """A size of the op `node` when every rank has `load` tokens."""
    if dim.known:
        return dim.scale
    if dim.symbol == "ranks":
        return dim.scale * schedule.ep
    whole: float = dim.scale * load * (schedule.ep if dim.symbol == "slots" else 1)
    if dim.symbol.startswith("experts("):
        return dim.scale * local_experts(schedule, node) * share(dim.cuts, schedule, node, load)
    if dim.symbol.startswith("tokens("):
        axis = dim.symbol[len("tokens(") : -1]
        whole /= schedule.mesh_of(axis).size(axis)
    if dim.symbol.startswith(("rows(", "gets(", "sends(")):
        dispatch = schedule.graph.node[dim.symbol.partition("(")[2][:-1]]
        if isinstance(dispatch.attrs, RowsAttrs | TransferAttrs | RouteAttrs):
            whole *= dispatch.attrs.top_k * (dispatch.attrs.share if isinstance(dispatch.attrs, RowsAttrs) else 1)
        if isinstance(dispatch.attrs, RowsAttrs) and dim.symbol.startswith("rows("):
            whole *= dispatch.attrs.etp
        if dispatch.kind == "pick_rows":  # of tokens that all ranks have
            whole /= schedule.ep
        node = dispatch
    return whole * share(dim.cuts, schedule, node, load)


def chosen_share(schedule: Schedule, node: Node, load: int) -> float:
    """The share of its experts that are chosen at all, on the rank that has most of them, if tokens choose
    independently and evenly; 1 for any other op."""
    if not isinstance(node.attrs, ExpertGemmAttrs) or load == 0:
        return 1.0
    rows = next((d for t in node.ins for d in schedule.graph.types[t].shape if d.symbol.startswith("rows(")), None)
    dispatch = schedule.graph.node.get(rows.symbol[len("rows(") : -1]) if rows else None
    if dispatch is None or not isinstance(dispatch.attrs, RowsAttrs | TransferAttrs | RouteAttrs):
        return 1.0
    attrs = dispatch.attrs
    among = (attrs.among if isinstance(attrs, RowsAttrs) else 0) or attrs.experts
    if attrs.top_k >= among:
        return 1.0
    mean = 1.0 - (1 - attrs.top_k / among) ** (load * schedule.ep)
    # Whichever rank has more of them to read, all others wait for it.
    spread = sqrt(mean * (1 - mean) / local_experts(schedule, node))
    return min(1.0, mean + spread * _greatest(schedule.ep))


@cache
def _greatest(n: int) -> float:
    """The greatest of n numbers that are normally distributed, on average (Blom's approximation)."""
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def region(ref: Ref, schedule: Schedule) -> Tensor:
    """The type of what a step reads or writes."""
    return schedule.graph.types[ref.value].cut(ref.cuts)


def bytes_of(ref: Ref, schedule: Schedule, node: Node, load: int) -> float:
    return size(region(ref, schedule), schedule, node, load) * filled(ref.value, schedule)


def size(tensor: Tensor, schedule: Schedule, node: Node, load: int) -> float:
    """Bytes of all of a tensor."""
    return tensor.dtype.bytes * count(tensor.numel, schedule, node, load)


def filled(value: str, schedule: Schedule) -> float:
    """The share of a value that is written: of places for every token at every rank, those of tokens that have an
    expert there, unless all tokens are sent. 1 for anything that has no such places."""
    shape = schedule.graph.types[value].shape
    if shape[0].symbol != "slots" or len(shape) < 2:
        return 1.0
    maker = next(node for node in schedule.graph.nodes if value in node.outs)
    if maker.kind == "copy_rows" or not isinstance(maker.attrs, TransferAttrs):
        return 1.0
    return meets(maker.attrs.experts, maker.attrs.top_k, schedule.ep)


def meets(experts: int, top_k: int, ranks: int) -> float:
    """How likely one of `top_k` different experts, drawn evenly, is one of a given rank's."""
    return reaches(experts, top_k, experts // ranks)


def reaches(experts: int, top_k: int, own: int) -> float:
    """How likely one of `top_k` different experts, drawn evenly, is one of `own` given ones."""
    elsewhere = experts - own
    return 1 - prod(max(0, elsewhere - i) / (experts - i) for i in range(top_k))


def read_by_group(step: Step, schedule: Schedule) -> float:
    """The share of the tokens that an op reads for a group of experts, of those that it reads for all."""
    node = schedule.node(step)
    if node.kind not in ("expand", "put_copies") or not step.cuts:
        return 1.0
    attrs = node.attrs
    assert isinstance(attrs, RowsAttrs | TransferAttrs)
    local, own = local_experts(schedule, node), group_experts(step, schedule)
    # Experts of one rank, or of each of them.
    ranks = schedule.ep if node.kind == "put_copies" else 1
    whole = reaches(attrs.experts, attrs.top_k, local * ranks)
    return reaches(attrs.experts, attrs.top_k, own * ranks) / whole


def row_count(step: Step, schedule: Schedule, load: int) -> float:
    """Rows of what the step makes: its first dimension, unless that is a number such as the count of experts."""
    if not step.writes:
        return 0
    first = region(step.writes[0], schedule).shape[0]
    return 0 if first.known else count(first, schedule, schedule.node(step), load)


def known_numbers(
    step: Step, schedule: Schedule, load: int, backend: str, share: float = 1.0
) -> dict[Metric, int | str]:
    """What a `Choice` may look at, for one step on a `cuda` or `cpu` device with `share` times the rows."""
    rows = row_count(step, schedule, load) * share
    mean = int(rows / (group_experts(step, schedule) or 1))
    return {
        Metric.ROWS: int(rows),
        Metric.MEAN_ROWS: mean,
        Metric.MAX_ROWS: mean,
        Metric.TOKENS: load,
        Metric.DEVICE: backend,
    }


def room_for(schedule: Schedule, dispatch: str, load: int) -> float:
    """Rows that there is room for of those that come one-sided: what may come, not what does."""
    node = schedule.graph.node[dispatch]
    experts, top_k = (int(getattr(node.attrs, name)) for name in ("experts", "top_k"))
    worst = schedule.ep * load * min(top_k, experts // schedule.ep)
    room = max((getattr(schedule.graph.maker[value].attrs, "room", 0.0) for value in node.ins[1:]), default=0.0)
    return min(worst, room * load * top_k) if room else worst


def comes_one_sided(schedule: Schedule, dispatch: str) -> bool:
    """Whether the host never knows how many rows came, so that all memory for them is for as many as can come."""
    makers = [schedule.graph.maker.get(value) for value in schedule.graph.node[dispatch].ins]
    return any(maker and isinstance(maker.attrs, PlaceAttrs) for maker in makers)


def covered(step: Step, schedule: Schedule, load: int, most: int) -> float:
    """How many times its rows a pass goes over that does not know them: rows that come one-sided lie in room for those
    that may come when every rank has `most` tokens."""
    for ref in step.writes:
        symbol = schedule.graph.types[ref.value].shape[0].symbol
        if not symbol.startswith("rows("):
            continue
        dispatch = symbol[len("rows(") : -1]
        rows = row_count(step, schedule, load)
        if rows and comes_one_sided(schedule, dispatch):
            return max(1.0, room_for(schedule, dispatch, most) / rows)
    return 1.0


def group_experts(step: Step, schedule: Schedule) -> int:
    """Local experts that the step works for: those of its expert group; 0 for an op that knows no experts."""
    experts = local_experts(schedule, schedule.node(step))
    for cut in step.cuts:
        if cut.axis is Axis.EXPERT_GROUP:
            experts = elements(cut, experts)
    return experts
