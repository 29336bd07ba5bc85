"""Reference: the layer again, as plain lines that follow the Graph and know no schedule, to check the program with.

Routed rows lie here as copies of tokens: row t*k + j is the j-th copy of token t, wherever it travels in the plan.
"""

from __future__ import annotations

from collections.abc import Callable

from epsc.codegen.lines import Arg, call
from epsc.codegen.names import Names, string
from epsc.ir.attrs import (
    CallAttrs,
    ExpertGemmActAttrs,
    ExpertGemmAttrs,
    GemmAttrs,
    RouteAttrs,
    RowsAttrs,
    TransferAttrs,
)
from epsc.ir.graph import Graph, Node

_SAME = frozenset(
    [
        *("all2all", "regroup", "ungroup", "unpermute", "tell", "put_rows", "copy_rows", "put_back"),
        *("place_rows", "all_reduce", "split_tokens", "all_gather", "reduce_scatter"),
        *("all_gather_rows", "all_gather_copies", "reduce_scatter_rows"),
    ]
)
_NOTHING = frozenset(
    [
        *("weight_copy", "layout", "exchange", "sizes", "arrange", "count", "locate", "aim", "fetch", "own_rows"),
        *("gather_counts", "pass_counts", "layout_shares"),
    ]
)


class Reference:
    """Writes the lines of `reference`."""

    def __init__(
        self, graph: Graph, names: Names, functions: dict[object, str], routers: dict[RouteAttrs, str]
    ) -> None:
        """`routers`: kernels of routers, which the program takes on CUDA."""
        self.graph, self.names, self.functions, self.routers = graph, names, functions, routers
        self.alias: dict[str, str] = {}
        """Values that only travel: the same copies under another name."""
        self.experts: dict[str, str] = {}
        """Control values of a dispatch -> the experts that its tokens chose."""

    def lines(self) -> list[str]:
        """The body of the function, indented by 4, with its `return`."""
        found: list[str] = []
        for node in self.graph.nodes:
            found += self._node(node)
        results = [self._value(value) for value in self.graph.results]
        return [*found, f"    return {', '.join(results)}"]

    def parameters(self) -> list[str]:
        return [self.names.of(value) for value in self.graph.inputs]

    def _value(self, value: str) -> str:
        while value in self.alias:
            value = self.alias[value]
        return self.names.of(value)

    def _node(self, node: Node) -> list[str]:
        if node.kind in _NOTHING:
            chosen = next((self.experts.get(value, "") for value in node.ins if value in self.experts), "")
            chosen = chosen or next(iter(node.ins), "")
            self.experts.update(dict.fromkeys(node.outs, chosen))
            return []
        if node.kind in _SAME:
            self.alias.update(zip(node.outs, node.ins, strict=False))
            return []
        return _WRITERS[node.kind](self, node)

    def _assign(self, node: Node, function: str, args: list[Arg]) -> list[str]:
        return call(f"{self.names.of(node.outs[0])} = {function}", args, indent=4)

    def _route(self, node: Node) -> list[str]:
        assert isinstance(node.attrs, RouteAttrs)
        x = self._value(node.ins[0])
        args: list[Arg] = [f"{x}.to(dtype)", *(f"raw({string(name)})" for name in node.params)]
        outs = ", ".join(map(self.names.of, node.outs))
        router = self.functions[node.attrs]
        if node.attrs not in self.routers:
            return call(f"{outs} = {router}", args, indent=4)
        choice = f"    router = {self.routers[node.attrs]} if {x}.is_cuda else {router}"
        return [choice, *call(f"{outs} = router", args, indent=4)]

    def _permute(self, node: Node) -> list[str]:
        assert isinstance(node.attrs, RowsAttrs | TransferAttrs)
        x = self._value(node.ins[0])
        return self._assign(node, f"{x}.repeat_interleave", [str(node.attrs.top_k), "dim=0"])

    def _expert_gemm(self, node: Node) -> list[str]:
        assert isinstance(node.attrs, ExpertGemmAttrs)
        chosen = self._value(self.experts[node.ins[1]])
        args: list[Arg] = [self._value(node.ins[0]), chosen, "get", string(node.params[0]), str(node.attrs.out)]
        if node.attrs.bias:
            args.append(f"bias={string(node.params[1])}")
        if node.attrs.transposed:
            args.append("transposed=True")
        if first := self._first(node.ins[1]):
            args.append(f"first={first}")
        return self._assign(node, "every_expert", args)

    def _first(self, ends: str) -> int:
        """The first expert of the dispatch that rows came by, whose op made their `ends`."""
        attrs = self.graph.maker[ends].attrs
        return attrs.first if isinstance(attrs, RowsAttrs) else 0

    def _expert_gemm_act(self, node: Node) -> list[str]:
        assert isinstance(node.attrs, ExpertGemmActAttrs)
        made = self.names.of(node.outs[0])
        args = [self.functions[node.attrs.act], made, self._width(node)]
        return [*self._expert_gemm(node), *self._assign(node, "fresh", list(args))]

    def _gemm(self, node: Node) -> list[str]:
        assert isinstance(node.attrs, GemmAttrs)
        weight = f"get({string(node.params[0])})" + (".T" if node.attrs.transposed else "")
        bias = [f"get({string(node.params[1])})"] if node.attrs.bias else []
        return self._assign(node, "F.linear", [self._value(node.ins[0]), weight, *bias])

    def _activation(self, node: Node) -> list[str]:
        return self._assign(node, "fresh", [self.functions[node.attrs], self._value(node.ins[0]), self._width(node)])

    def _width(self, node: Node) -> str:
        return str(self.graph.types[node.outs[0]].shape[1].scale)

    def _elementwise(self, node: Node) -> list[str]:
        a, b = map(self._value, node.ins)
        return [f"    {self.names.of(node.outs[0])} = {a} {'+' if node.kind == 'add' else '*'} {b}"]

    def _sum(self, node: Node) -> list[str]:
        at = 2 if node.kind == "unpermute_sum" else 1
        weights = node.ins[at]
        addend = f" + {self._value(node.ins[at + 1])}" if len(node.ins) > at + 1 else ""
        head = f"{self.names.of(node.outs[0])} = weighted"
        weighed = self._value(weights)
        if isinstance(node.attrs, RowsAttrs) and node.attrs.selective:
            place = node.ins[1] if at == 2 else self.graph.maker[node.ins[0]].ins[1]
            weighed = self._own_weights(weighed, self._value(self.experts[place]), node.attrs)
        return call(head, [self._value(node.ins[0]), weighed], addend, 4)

    def _own_weights(self, weights: str, chosen: str, attrs: RowsAttrs) -> str:
        return f"own_weights({weights}, {chosen}, {attrs.first}, {attrs.experts})"

    def _identity(self, node: Node) -> list[str]:
        assert isinstance(node.attrs, RowsAttrs)
        x, experts, weights = map(self._value, node.ins)
        own = self._own_weights(weights, experts, node.attrs)
        return [f"    {self.names.of(node.outs[0])} = {x} * {own}.sum(-1, keepdim=True)"]

    def _put_sums(self, node: Node) -> list[str]:
        return call(
            f"{self.names.of(node.outs[0])} = weighted", list(map(self._value, (node.ins[0], node.ins[2]))), "", 4
        )

    def _sum_ranks(self, node: Node) -> list[str]:
        """Sums of ranks are one sum here."""
        if len(node.ins) < 3:
            self.alias[node.outs[0]] = node.ins[0]
            return []
        return [f"    {self.names.of(node.outs[0])} = {self._value(node.ins[0])} + {self._value(node.ins[2])}"]

    def _call(self, node: Node) -> list[str]:
        assert isinstance(node.attrs, CallAttrs)
        return self._assign(node, f"given[{string(node.attrs.module)}]", [self._value(value) for value in node.ins])


_WRITERS: dict[str, Callable[[Reference, Node], list[str]]] = {
    "route": Reference._route,
    "identity": Reference._identity,
    "permute": Reference._permute,
    "pick_rows": Reference._permute,
    "expand": Reference._permute,
    "put_copies": Reference._permute,
    "expert_gemm": Reference._expert_gemm,
    "expert_gemm_act": Reference._expert_gemm_act,
    "expert_gemm_put": Reference._expert_gemm,
    "gemm": Reference._gemm,
    "activation": Reference._activation,
    "add": Reference._elementwise,
    "mul": Reference._elementwise,
    "weighted_sum": Reference._sum,
    "unpermute_sum": Reference._sum,
    "sum_copies": Reference._sum,
    "put_sums": Reference._put_sums,
    "sum_ranks": Reference._sum_ranks,
    "call": Reference._call,
}
