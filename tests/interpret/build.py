"""Graphs made by hand, each in said and in lowered form."""

from __future__ import annotations

from epsc.ir.attrs import (
    ActAttrs,
    Attrs,
    CallAttrs,
    Direction,
    ExpertGemmAttrs,
    GemmAttrs,
    NoAttrs,
    RouteAttrs,
    RowsAttrs,
    TransferAttrs,
)
from epsc.ir.dims import TOKENS, Dim, DType, Tensor, rows
from epsc.ir.graph import Graph, Node, Param
from epsc.ir.kinds import KINDS


class Build:
    """A graph under construction. Each method adds a node (or, when lowered, several) and returns its value."""

    def __init__(self, hidden: int, *, lowered: bool = False, fused: bool = False) -> None:
        self.lowered, self.fused = lowered, fused
        self.types = {"x": Tensor(DType.BF16, (TOKENS, Dim(hidden)))}
        self.params: list[Param] = []
        self.nodes: list[Node] = []
        self.ends: dict[str, str] = {}

    def graph(self, *results: str) -> Graph:
        made = {out for node in self.nodes for out in node.outs}
        inputs = tuple(value for value in self.types if value not in made)
        graph = Graph("layer", inputs, self.types, tuple(self.params), tuple(self.nodes), results)
        graph.verify()
        return graph

    def op(
        self, name: str, kind: str, ins: tuple[str, ...], attrs: Attrs, *types: Tensor, params: tuple[str, ...] = ()
    ) -> str:
        outs = tuple(f"{name}{suffix}" for suffix in KINDS[kind].outs)
        self.types.update(zip(outs, types, strict=True))
        self.nodes.append(Node(name, kind, ins, outs, attrs, params))
        return outs[0]

    def given(self, name: str, type: str) -> str:
        """An input besides x."""
        self.types[name] = Tensor.parse(type)
        return name

    def weight(self, name: str, *shape: int, sharded: bool = False) -> str:
        self.params.append(Param(name, Tensor(DType.BF16, tuple(map(Dim, shape))), sharded))
        return name

    def width(self, value: str) -> int:
        return self.types[value].shape[-1].scale

    def like(self, value: str, width: int) -> Tensor:
        type = self.types[value]
        return Tensor(type.dtype, (*type.shape[:-1], Dim(width)))

    def route(self, name: str, attrs: RouteAttrs, x: str = "x") -> str:
        params = [self.weight(f"{name}.weight", attrs.experts, self.width(x))]
        if attrs.bias:
            params.append(self.weight(f"{name}.bias", attrs.experts))
        if attrs.choice_bias:
            params.append(self.weight(f"{name}.choice_bias", attrs.experts))
        shape = (TOKENS, Dim(attrs.top_k))
        self.op(name, "route", (x,), attrs, Tensor(DType.INT64, shape), Tensor(DType.FP32, shape), params=tuple(params))
        return name

    def dispatch(self, name: str, route: str, experts: int, k: int, x: str = "x") -> str:
        attrs = RowsAttrs(experts, k)
        arrived = Tensor(DType.BF16, (rows(name), Dim(self.width(x))))
        if not self.lowered:
            return self.op(name, "dispatch", (x, f"{route}.experts"), attrs, arrived)
        copies, counts = (TOKENS.times(k),), Tensor(DType.INT64, (Dim(experts),))
        transfer = TransferAttrs(Direction.DISPATCH, experts, k)
        index = Tensor(DType.INT64, copies)
        self.op(f"{name}.layout", "layout", (f"{route}.experts",), attrs, index, index, counts)
        self.op(f"{name}.exchange", "exchange", (f"{name}.layout.counts",), transfer, counts)
        both = Tensor(DType.INT64, (Dim(2 * experts),))
        self.op(f"{name}.sizes", "sizes", (f"{name}.layout.counts", f"{name}.exchange"), attrs, both)
        sent = Tensor(DType.BF16, (*copies, Dim(self.width(x))))
        self.op(f"{name}.permute", "permute", (x, f"{name}.layout.order"), attrs, sent)
        self.op(name, "all2all", (f"{name}.permute", f"{name}.sizes"), transfer, arrived)
        ends = Tensor(DType.INT32, (Dim(experts),))
        index = Tensor(DType.INT64, (rows(name),))
        self.op(f"{name}.arrange", "arrange", (f"{name}.exchange", f"{name}.sizes"), attrs, index, ends)
        self.ends[str(rows(name))] = f"{name}.arrange.ends"
        return self.op(f"{name}.regroup", "regroup", (name, f"{name}.arrange.index"), attrs, arrived)

    def expert_gemm(self, name: str, value: str, attrs: ExpertGemmAttrs) -> str:
        shape = (self.width(value), attrs.out) if attrs.transposed else (attrs.out, self.width(value))
        params = [self.weight(f"{name}.weight", attrs.experts, *shape, sharded=True)]
        if attrs.bias:
            params.append(self.weight(f"{name}.bias", attrs.experts, attrs.out, sharded=True))
        ends = (self.ends[self.types[value].shape[0].symbol],) if self.lowered else ()
        return self.op(name, "expert_gemm", (value, *ends), attrs, self.like(value, attrs.out), params=tuple(params))

    def gemm(self, name: str, value: str, attrs: GemmAttrs) -> str:
        shape = (self.width(value), attrs.out) if attrs.transposed else (attrs.out, self.width(value))
        params = [self.weight(f"{name}.weight", *shape)]
        if attrs.bias:
            params.append(self.weight(f"{name}.bias", attrs.out))
        return self.op(name, "gemm", (value,), attrs, self.like(value, attrs.out), params=tuple(params))

    def act(self, name: str, value: str, attrs: ActAttrs) -> str:
        width = self.width(value) // 2 if attrs.fn.gated else self.width(value)
        return self.op(name, "activation", (value,), attrs, self.like(value, width))

    def combine(self, name: str, value: str, route: str, experts: int, k: int) -> str:
        attrs = RowsAttrs(experts, k)
        home = Tensor(DType.BF16, (TOKENS, Dim(self.width(value))))
        if not self.lowered:
            return self.op(name, "combine", (value, f"{route}.experts", f"{route}.weights"), attrs, home)
        dispatch = self.types[value].shape[0].symbol[5:-1]
        copies = Tensor(DType.BF16, (TOKENS.times(k), Dim(self.width(value))))
        self.op(f"{name}.ungroup", "ungroup", (value, f"{dispatch}.arrange.index"), attrs, self.types[value])
        transfer = TransferAttrs(Direction.COMBINE, experts, k)
        self.op(f"{name}.all2all", "all2all", (f"{name}.ungroup", f"{dispatch}.sizes"), transfer, copies)
        back = (f"{name}.all2all", f"{dispatch}.layout.place")
        if self.fused:
            return self.op(name, "unpermute_sum", (*back, f"{route}.weights"), attrs, home)
        self.op(f"{name}.unpermute", "unpermute", back, attrs, copies)
        return self.op(name, "weighted_sum", (f"{name}.unpermute", f"{route}.weights"), attrs, home)

    def add(self, name: str, a: str, b: str) -> str:
        return self.op(name, "add", (a, b), NoAttrs(), self.types[a])

    def mul(self, name: str, a: str, b: str) -> str:
        wider = max(a, b, key=self.width)
        return self.op(name, "mul", (a, b), NoAttrs(), self.types[wider])

    def call(self, name: str, module: str, *ins: str) -> str:
        return self.op(name, "call", ins, CallAttrs(module), self.types[ins[0]])


def moe(
    route: RouteAttrs,
    *,
    hidden: int = 8,
    inner: int = 6,
    act: ActAttrs,
    bias: bool = False,
    transposed: bool = False,
    lowered: bool = False,
    fused: bool = False,
) -> Graph:
    """Route, dispatch, two gemms with an activation between them, combine."""
    b = Build(hidden, lowered=lowered, fused=fused)
    e, k = route.experts, route.top_k
    r = b.route("r", route)
    sent = b.dispatch("sent", r, e, k)
    first = ExpertGemmAttrs(e, inner * (1 + act.fn.gated), bias, transposed)
    h = b.act("h", b.expert_gemm("up", sent, first), act)
    rows_out = b.expert_gemm("down", h, ExpertGemmAttrs(e, hidden, bias, transposed))
    return b.graph(b.combine("back", rows_out, r, e, k))
