"""canonicalise: said ops -> lowered ops, and nothing that no result needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from epsc.ir.attrs import (
    Attrs,
    CollectiveAttrs,
    Direction,
    ExpertGemmAttrs,
    PlaceAttrs,
    RowsAttrs,
    SlotAttrs,
    TransferAttrs,
)
from epsc.ir.dims import RANKS, SLOTS, TOKENS, Dim, DType, Tensor, own_experts, rows, sends
from epsc.ir.graph import Graph, Node
from epsc.passes.asks import NOTHING, Asks
from epsc.passes.questions import needed


@dataclass(frozen=True)
class Canonicalise:
    """Spell out what dispatch and combine do, and drop what no result needs.

    rewrite:
        sent = dispatch(x, r)  -->  sent.layout   = layout(r.experts)        where each copy of a token goes
                                    sent.exchange = exchange(counts)         how many rows come
                                    sent.permute  = permute(x, order)        rows in sending order
                                    sent.sizes    = sizes(counts)            the host learns the counts
                                    sent.all2all  = all2all(sent.permute)
                                    sent.arrange  = arrange(sent.exchange)   where each received row belongs
                                    sent          = regroup(sent.all2all)    rows by expert
        h cut by peer with it -->   sent          = all2all(sent.permute)    rows by source, and h runs on them as they
                                    h.regroup     = regroup(h)               come; then by expert
        one-sided            -->    sent.count    = count(r.experts)         ranks of copies among those of an expert
                                    sent.tell     = tell(r, counts)          all ranks' routing, at all ranks
                                    sent.put      = put_rows(x, r.experts)   rows into the memory of other ranks, or
                                    sent.copy     = copy_rows(x)
                                    sent.locate   = locate(sent.tell)        where each copy of a token belongs here
                                    sent          = expand(x, sent.put)      rows by expert
        and each copy apart  -->    sent.aim      = aim(sent.tell)           and at which row of its owner
                                    sent          = put_copies(x, target)    rows where products read them
        back = combine(h, r)   -->  back.ungroup  = ungroup(h, index)        rows by source rank again
                                    back.all2all  = all2all(back.ungroup)
                                    back.unpermute = unpermute(back.all2all) copies in token order
                                    back          = weighted_sum(copies, r.weights)
        in two levels        -->    sent.passing  = pass_counts(counts)      and how many pass through this rank
        ranks share experts  -->    sent.counts   = gather_counts(exchange)  what comes to all of them
                                    sent.gather   = all_gather_rows(sent.all2all)
                                    back.scatter  = reduce_scatter_rows(back.ungroup)
        of a share of tokens -->    back.layout_shares = layout_shares(r.experts)   where copies of all shares lie
                                    back.gather   = all_gather_copies(back.all2all)
        sent = select_local(x, r) -->  sent.layout = layout(r.experts)        copies of all tokens, by expert
                                    sent.fetch    = fetch(counts)            the host learns the counts
                                    sent.sizes    = sizes(counts)
                                    sent.own      = own_rows(order)          which copies have their expert here
                                    sent          = pick_rows(x, index)      rows by expert
        back = scatter_rows(h, r) -->  back.place = place_rows(h, index)      copies in token order, into zeros
                                    back          = weighted_sum(copies, r.weights)
        one-sided            -->    back.put      = put_sums(h, weights)     a sum per token and rank goes home
                                    back          = sum_ranks(back.put)
        and each copy apart  -->    back.put      = put_back(h, place)       a row for each copy goes home
                                    back          = sum_copies(back.put, r.weights)
        g = gemm(sent, w)      -->  g.slots       = weight_copy(w)           where `w` is offloaded: from the host
                                    g             = expert_gemm(sent, g.slots)
    """

    name: ClassVar[str] = "canonicalise"

    def __call__(self, graph: Graph, asks: Asks = NOTHING) -> Graph:
        types = dict(graph.types)
        nodes: list[Node] = []
        ends: dict[str, str] = {}
        places: dict[str, str] = {}
        """One-sided dispatch -> the op that knows where its rows lie."""
        said = needed(graph)
        for node in said:
            if node.name in asks.transports:
                if node.kind == "dispatch":
                    nodes += _one_sided_dispatch(node, types, asks, _weights_of(said, types, node))
                    places[node.name] = nodes[-2].name
                    ends[node.name] = f"{places[node.name]}.ends"
                else:
                    nodes += _one_sided_combine(node, types, places, node.name in asks.copies)
            elif node.kind == "dispatch":
                straight = any(user.name in asks.by_source for user in graph.users[node.name])
                by_source = straight and node.name in asks.by_source
                nodes += _dispatch(node, types, by_source, node.name in asks.by_node)
                ends[node.name] = f"{node.name}.arrange.ends"
            elif node.kind == "combine":
                nodes += _combine(node, types)
            elif node.kind == "select_local":
                nodes += _select_local(node, types)
                ends[node.name] = f"{node.name}.own.ends"
            elif node.kind == "scatter_rows":
                nodes += _scatter_rows(node, types)
            elif node.kind == "expert_gemm":
                dispatch = types[node.ins[0]].shape[0].symbol[len("rows(") : -1]
                nodes += _expert_gemm(node, types, dispatch, ends[dispatch], asks.slots.get(node.name, 0))
            else:
                nodes.append(node)
        lowered = graph.with_nodes(_regrouped(nodes, types, graph, asks.by_source), types)
        used = {name for node in nodes for name in node.params}
        return replace(lowered, params=tuple(p for p in graph.params if p.name in used))


def _expert_gemm(node: Node, types: dict[str, Tensor], dispatch: str, ends: str, slots: int) -> list[Node]:
    """The product, and what brings its weight where that stays with the host."""
    gemm = replace(node, ins=(node.ins[0], ends))
    if not slots:
        return [gemm]
    assert isinstance(node.attrs, ExpertGemmAttrs)
    name, wide, made = f"{node.name}.slots", types[node.ins[0]].shape[1], Dim(node.attrs.out)
    shape = (wide, made) if node.attrs.transposed else (made, wide)
    types[name] = Tensor(types[node.name].dtype, (own_experts(dispatch), *shape))
    copy = replace(
        node,
        name=name,
        kind="weight_copy",
        # Counts come before it where the host learns them: experts without rows are passed over.
        ins=(f"{dispatch}.sizes",) if f"{dispatch}.sizes" in types else (),
        outs=(name,),
        attrs=SlotAttrs(node.attrs.experts, slots),
        params=node.params[:1],
        origin=name,
    )
    return [copy, replace(gemm, ins=(*gemm.ins, name), attrs=replace(node.attrs, slots=slots))]


def _regrouped(nodes: list[Node], types: dict[str, Tensor], said: Graph, by_source: frozenset[str]) -> tuple[Node, ...]:
    """Rows go by expert where the first op reads them that does not run on them as they come from each rank."""
    found: list[Node] = []
    sources: dict[str, str] = {}
    """Value by source -> the same by expert, once something asked for it."""
    for node in nodes:
        if node.name in by_source and (node.kind == "all2all" or node.ins[0] in sources):
            sources[node.name] = ""
        elif any(value in sources for value in node.ins):
            for value in node.ins:
                if sources.get(value) == "":
                    d = types[value].shape[0].symbol[len("rows(") : -1]
                    sources[value] = f"{value}.regroup"
                    types[sources[value]] = types[value]
                    attrs = said.node[d].attrs
                    ins = (value, f"{d}.arrange.index")
                    maker = said.maker[value]
                    regroup = Node(sources[value], "regroup", ins, (sources[value],), attrs)
                    found.append(replace(regroup, origin=maker.origin, span=maker.span, places=maker.places))
            node = replace(node, ins=tuple(sources.get(value, value) for value in node.ins))
        found.append(node)
    return tuple(found)


def _dispatch(node: Node, types: dict[str, Tensor], by_source: bool, by_node: bool) -> list[Node]:
    """`by_source`: what reads the rows takes them as they come; `by_node`: they, or those that go home, pass through
    other ranks."""
    assert isinstance(node.attrs, RowsAttrs)
    d, attrs = node.name, node.attrs
    x, experts = node.ins
    transfer = TransferAttrs(Direction.DISPATCH, attrs.experts, attrs.top_k)
    row_type = types[d]
    sent = types[x].shape[0].times(attrs.top_k)
    send_type = Tensor(row_type.dtype, (sent, row_type.shape[1]))
    counts = Tensor(DType.INT64, (Dim(attrs.experts),))
    copies = Tensor(DType.INT64, (sent,))

    def op(suffix: str, kind: str, ins: tuple[str, ...], outs: dict[str, Tensor], of: Attrs = attrs) -> Node:
        name = f"{d}{suffix}"
        types.update({f"{name}{out}": tensor for out, tensor in outs.items()})
        return replace(node, name=name, kind=kind, ins=ins, outs=tuple(f"{name}{out}" for out in outs), attrs=of)

    together = replace(transfer, mesh="etp")
    shared = attrs.etp > 1
    gets = Tensor(row_type.dtype, (Dim(1, f"gets({d})"), row_type.shape[1])) if shared else row_type
    arriving = f"{d}.counts" if shared else f"{d}.exchange"
    known = (f"{d}.layout.counts", arriving, *((f"{d}.passing",) if by_node else ()))
    first = [
        op(".layout", "layout", (experts,), {".order": copies, ".place": copies, ".counts": counts}),
        op(".exchange", "exchange", (f"{d}.layout.counts",), {"": counts}, transfer),
        op(".passing", "pass_counts", (f"{d}.layout.counts",), {"": counts}, replace(transfer, mesh="intra")),
        op(".counts", "gather_counts", (f"{d}.exchange",), {"": counts}, together),
        op(".permute", "permute", (x, f"{d}.layout.order"), {"": send_type}),
        op(
            ".sizes",
            "sizes",
            known,
            {"": Tensor(DType.INT64, (Dim(len(known) * attrs.experts),))},
        ),
    ]
    wanted = {"gather_counts": shared, "pass_counts": by_node}
    first = [node for node in first if wanted.get(node.kind, True)]
    arrange = op(
        ".arrange",
        "arrange",
        (arriving, f"{d}.sizes"),
        {".index": Tensor(DType.INT64, (rows(d),)), ".ends": Tensor(DType.INT32, (Dim(attrs.experts),))},
    )
    send = op("" if by_source else ".all2all", "all2all", (f"{d}.permute", f"{d}.sizes"), {"": gets}, transfer)
    if by_source:
        return [*first, arrange, send]
    came = [send]
    if shared:
        came.append(op(".gather", "all_gather_rows", (send.name, f"{d}.sizes"), {"": row_type}, together))
    return [*first, *came, arrange, op("", "regroup", (came[-1].name, f"{d}.arrange.index"), {"": row_type})]


def _combine(node: Node, types: dict[str, Tensor]) -> list[Node]:
    assert isinstance(node.attrs, RowsAttrs)
    c, attrs = node.name, node.attrs
    h, _, weights = node.ins
    d = types[h].shape[0].symbol[len("rows(") : -1]
    copies = Tensor(types[h].dtype, (types[weights].shape[0].times(attrs.top_k), types[h].shape[1]))
    home = Tensor(copies.dtype, (sends(d), copies.shape[1])) if attrs.selective else copies
    types.update({f"{c}.ungroup": types[h], f"{c}.all2all": home, f"{c}.unpermute": copies})
    transfer = TransferAttrs(Direction.COMBINE, attrs.experts, attrs.top_k)
    came, place, gathered = f"{c}.all2all", f"{d}.layout.place", list[Node]()
    if attrs.over:
        types[came] = Tensor(copies.dtype, (types[f"{d}.permute"].shape[0], copies.shape[1]))
        gathered = _gathered(node, types, came, copies)
        came, place = gathered[-1].name, gathered[0].outs[0]
    sums: list[Node] = []
    back = f"{c}.ungroup"
    if attrs.etp > 1:
        back = f"{c}.scatter"
        types[back] = Tensor(types[h].dtype, (Dim(1, f"gets({d})"), types[h].shape[1]))
        ins = (f"{c}.ungroup", f"{d}.sizes")
        together = replace(transfer, mesh="etp")
        sums = [replace(node, name=back, kind="reduce_scatter_rows", ins=ins, outs=(back,), attrs=together)]

    def op(suffix: str, kind: str, ins: tuple[str, ...], of: Attrs = attrs) -> Node:
        return replace(node, name=f"{c}{suffix}", kind=kind, ins=ins, outs=(f"{c}{suffix}",), attrs=of)

    return [
        op(".ungroup", "ungroup", (h, f"{d}.arrange.index")),
        *sums,
        op(".all2all", "all2all", (back, f"{d}.sizes"), transfer),
        *gathered,
        op(".unpermute", "unpermute", (came, place)),
        op("", "weighted_sum", (f"{c}.unpermute", weights)),
    ]


def _gathered(node: Node, types: dict[str, Tensor], came: str, copies: Tensor) -> list[Node]:
    """The rows that came home to this rank's share of the tokens, and those of the other shares."""
    assert isinstance(node.attrs, RowsAttrs)
    c = node.name
    layout, fetch, sizes, gather = (f"{c}.{each}" for each in ("layout_shares", "fetch", "sizes", "gather"))
    place, counts = f"{layout}.place", f"{layout}.counts"
    types[place] = Tensor(DType.INT64, (copies.shape[0],))
    types |= dict.fromkeys((counts, fetch, sizes), Tensor(DType.INT64, (RANKS,)))
    types[gather] = copies
    return [
        replace(node, name=layout, kind="layout_shares", ins=(node.ins[1],), outs=(place, counts)),
        replace(node, name=fetch, kind="fetch", ins=(counts,), outs=(fetch,)),
        replace(node, name=sizes, kind="sizes", ins=(fetch,), outs=(sizes,)),
        replace(
            node,
            name=gather,
            kind="all_gather_copies",
            ins=(came, sizes),
            outs=(gather,),
            attrs=CollectiveAttrs(node.attrs.over),
        ),
    ]


def _select_local(node: Node, types: dict[str, Tensor]) -> list[Node]:
    assert isinstance(node.attrs, RowsAttrs)
    d, attrs = node.name, node.attrs
    x, experts = node.ins
    counts = Tensor(DType.INT64, (Dim(attrs.experts),))
    copies = Tensor(DType.INT64, (TOKENS.times(attrs.top_k),))
    ends = Tensor(DType.INT32, (Dim(attrs.experts),))

    def op(suffix: str, kind: str, ins: tuple[str, ...], outs: dict[str, Tensor]) -> Node:
        name = f"{d}{suffix}"
        types.update({f"{name}{out}": tensor for out, tensor in outs.items()})
        return replace(node, name=name, kind=kind, ins=ins, outs=tuple(f"{name}{out}" for out in outs))

    both = Tensor(DType.INT64, (Dim(2 * attrs.experts),))
    index = Tensor(DType.INT64, (rows(d),))
    return [
        op(".layout", "layout", (experts,), {".order": copies, ".place": copies, ".counts": counts}),
        op(".fetch", "fetch", (f"{d}.layout.counts",), {"": counts}),
        op(".sizes", "sizes", (f"{d}.layout.counts", f"{d}.fetch"), {"": both}),
        op(".own", "own_rows", (f"{d}.layout.order", f"{d}.sizes"), {".index": index, ".ends": ends}),
        op("", "pick_rows", (x, f"{d}.own.index"), {"": types[d]}),
    ]


def _scatter_rows(node: Node, types: dict[str, Tensor]) -> list[Node]:
    assert isinstance(node.attrs, RowsAttrs)
    h, _, weights = node.ins
    d, place = types[h].shape[0].symbol[len("rows(") : -1], f"{node.name}.place"
    types[place] = Tensor(types[h].dtype, (TOKENS.times(node.attrs.top_k), types[h].shape[1]))
    return [
        replace(node, name=place, kind="place_rows", ins=(h, f"{d}.own.index"), outs=(place,)),
        replace(node, kind="weighted_sum", ins=(place, weights)),
    ]


def _weights_of(nodes: list[Node], types: dict[str, Tensor], dispatch: Node) -> str:
    """The weights that the rows of a dispatch are summed with: with one-sided transfers experts must know them."""
    here = f"rows({dispatch.name})"
    (home,) = (node for node in nodes if node.kind == "combine" and types[node.ins[0]].shape[0].symbol == here)
    return home.ins[2]


def _one_sided_dispatch(node: Node, types: dict[str, Tensor], asks: Asks, weights: str) -> list[Node]:
    assert isinstance(node.attrs, RowsAttrs)
    d, attrs = node.name, node.attrs
    x, experts = node.ins
    transfer = TransferAttrs(Direction.DISPATCH, attrs.experts, attrs.top_k)
    room = PlaceAttrs(attrs.experts, attrs.top_k, room=asks.rooms.get(d, 0.0))
    row_type = types[d]
    counts = Tensor(DType.INT32, (Dim(attrs.experts),))
    copies = Tensor(DType.INT32, (TOKENS.times(attrs.top_k),))
    of_all = Tensor(DType.INT32, (SLOTS.times(attrs.top_k),))
    slots = Tensor(row_type.dtype, (SLOTS, row_type.shape[1]))

    def op(suffix: str, kind: str, ins: tuple[str, ...], outs: dict[str, Tensor], of: Attrs = attrs) -> Node:
        name = f"{d}{suffix}"
        types.update({f"{name}{out}": tensor for out, tensor in outs.items()})
        return replace(node, name=name, kind=kind, ins=ins, outs=tuple(f"{name}{out}" for out in outs), attrs=of)

    told = {
        ".experts": of_all,
        ".weights": Tensor(DType.FP32, of_all.shape),
        ".within": of_all,
        ".counts": Tensor(DType.INT32, (RANKS.times(attrs.experts),)),
    }
    all_told = (f"{d}.tell.experts", f"{d}.tell.within", f"{d}.tell.counts")
    found = {".place": of_all, ".ends": counts}
    first = [
        op(".count", "count", (experts,), {".within": copies, ".counts": counts}),
        op(".tell", "tell", (experts, weights, f"{d}.count.within", f"{d}.count.counts"), told, transfer),
    ]
    if d in asks.copies:
        return [
            *first,
            op(".aim", "aim", all_told, {**found, ".target": copies}, room),
            op("", "put_copies", (x, experts, f"{d}.aim.target"), {"": row_type}, transfer),
        ]
    if asks.transports[d] == "put":
        move = op(".put", "put_rows", (x, experts), {"": slots}, transfer)
    else:
        move = op(".copy", "copy_rows", (x,), {"": slots}, transfer)
    return [
        *first,
        move,
        op(".locate", "locate", all_told, found, room),
        op("", "expand", (x, move.name, f"{d}.locate.place", f"{d}.tell.counts"), {"": row_type}),
    ]


def _one_sided_combine(node: Node, types: dict[str, Tensor], places: dict[str, str], apart: bool) -> list[Node]:
    """`apart`: each copy comes home as it is, and is weighed and summed there."""
    assert isinstance(node.attrs, RowsAttrs)
    c, attrs = node.name, node.attrs
    h, experts, weights = node.ins
    d = types[h].shape[0].symbol[len("rows(") : -1]
    place, told = f"{places[d]}.place", f"{d}.tell"
    rows = TOKENS.times(attrs.top_k) if apart else SLOTS
    types[f"{c}.put"] = Tensor(types[h].dtype, (rows, types[h].shape[1]))
    put = replace(
        node,
        name=f"{c}.put",
        kind="put_back" if apart else "put_sums",
        ins=(h, place, f"{told}.counts") if apart else (h, place, f"{told}.weights", f"{told}.counts"),
        outs=(f"{c}.put",),
        attrs=TransferAttrs(Direction.COMBINE, attrs.experts, attrs.top_k),
    )
    kind, reads = ("sum_copies", weights) if apart else ("sum_ranks", experts)
    return [put, replace(node, kind=kind, ins=(put.name, reads), outs=(c,), attrs=attrs)]
