"""moefy: a trained dense FFN, cut into experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from epsc.ir.attrs import Act, ActAttrs, ExpertGemmAttrs, GemmAttrs, RouteAttrs, RowsAttrs
from epsc.ir.dims import TOKENS, Dim, DType, Tensor, rows
from epsc.ir.errors import Diagnostic, EpsError, Faults
from epsc.ir.graph import Graph, Node, Param, places_of
from epsc.ir.source import Span

_SUFFIXES = ("_look", "_seen", "_router", "_sent", "_up", "_act", "_down")
"""Behind the name of the FFN: what ops that it becomes are called."""


@dataclass(frozen=True)
class Ffn:
    """A dense FFN of a graph: `down(act(up(x)))`, and the weights of the router that it gets."""

    up: Node
    act: Node
    down: Node

    @property
    def width(self) -> int:
        """Neurons."""
        assert isinstance(self.up.attrs, GemmAttrs)
        return self.up.attrs.out

    @property
    def router(self) -> str:
        return f"{self.up.params[0]}.router.weight"

    @property
    def router_up(self) -> str:
        """Of a router of two layers: its first."""
        return f"{self.up.params[0]}.router.up"


@dataclass(frozen=True)
class Moefy:
    """Cut trained dense FFNs into experts (MoEfication): few neurons of a ReLU are not zero, and those that are not
    zero together become one expert.

    rewrite (each ungated FFN on tokens, of ReLU or its square, whose rows in between nobody else reads):
        y = gemm(relu(gemm(x)))  -->  y_router = route(x; experts, top_k, weighted=false)
                                      y_sent   = dispatch(x, y_router)
                                      y_up     = expert_gemm(y_sent)    its neurons, of an expert width / experts
                                      y_act    = relu(y_up)
                                      y_down   = expert_gemm(y_act)
                                      y        = combine(y_down, y_router)
    With top_k = experts that is the FFN. `epsc.moefied` lays the weights out anew, and makes those of the router.
    """

    name: ClassVar[str] = "moefy"

    experts: int = 0
    """Into how many experts each FFN is cut; 0: none is."""
    top_k: int = 0
    """Experts that a token meets; 0: all of them."""
    router: int = 0
    """Width of a router of two layers; 0: an expert is chosen by how alike the token and its neurons are."""

    def __post_init__(self) -> None:
        if self.top_k > self.experts:
            message = f"`moefy{{top_k={self.top_k}}}`: there are only {self.experts} experts"
            raise EpsError(Diagnostic("top-k", message))

    def __call__(self, graph: Graph) -> Graph:
        """Raises EpsError for FFNs that cannot be cut so."""
        if not self.experts:
            return graph
        ffns = {ffn.down.name: ffn for ffn in ffns_of(graph)}
        self._check(graph, ffns)
        gone = {node.name for ffn in ffns.values() for node in (ffn.up, ffn.act)}
        types, params = dict(graph.types), {param.name: param for param in graph.params}
        nodes: list[Node] = []
        for node in graph.nodes:
            if node.name in ffns:
                ffn = ffns[node.name]
                places = places_of(ffn.up, ffn.act, ffn.down)
                nodes += (replace(made, places=places) for made in self._experts_of(ffn, graph, types, params))
            elif node.name not in gone:
                nodes.append(node)
        return replace(graph.with_nodes(tuple(nodes), types), params=tuple(params.values()))

    def _check(self, graph: Graph, ffns: dict[str, Ffn]) -> None:
        faults = Faults()
        if not ffns:
            message = f"`{graph.name}` has no dense FFN that `moefy` could cut"
            help = "it cuts gemm(relu(gemm(x, ..)), ..) and mlp(x, relu, ..), of `relu` or `relu2`, on tokens"
            faults.add("nothing-to-cut", message, help=help)
        for ffn in ffns.values():
            for name in (f"{ffn.down.name}{suffix}" for suffix in _SUFFIXES):
                if name in graph.node:
                    message = f"`moefy` would call an op `{name}`, as another one is called"
                    faults.add("duplicate-name", message, graph.node[name].span, help="give that another name")
        own = {node.name for ffn in ffns.values() for node in (ffn.up, ffn.down)}
        for ffn in ffns.values():
            span: Span | None = ffn.down.span
            if ffn.width % self.experts:
                faults.add(
                    "experts", f"{ffn.width} neurons cannot be shared evenly by {self.experts} experts", ffn.up.span
                )
            assert isinstance(ffn.down.attrs, GemmAttrs)
            if ffn.down.attrs.bias:
                message = f"`{ffn.down.origin}` adds a bias to what it makes, and each expert of a token would add it"
                faults.add("bias", message, span, help="only FFNs whose second product has no bias can be cut")
            for name in (*ffn.up.params, *ffn.down.params):
                if elsewhere := [n for n in graph.nodes if name in n.params and n.name not in own]:
                    message = f"`{name}` cannot be cut into experts: `{elsewhere[0].origin}` uses it as it is"
                    faults.add("shared-weight", message, elsewhere[0].span)
        faults.raise_if_any()

    def _experts_of(self, ffn: Ffn, graph: Graph, types: dict[str, Tensor], params: dict[str, Param]) -> list[Node]:
        """What one FFN becomes; adds the types of its values, and replaces its weights."""
        y, x, k = ffn.down.name, ffn.up.ins[0], self.top_k or self.experts
        wide = ffn.width // self.experts
        row = types[x]
        made: list[Node] = []

        def op(suffix: str, kind: str, ins: tuple[str, ...], attrs: object, outs: dict[str, Tensor], *of: str) -> str:
            name = f"{y}{suffix}"
            types.update({f"{name}{out}": tensor for out, tensor in outs.items()})
            origin = f"{ffn.down.origin}{suffix}" if suffix else ffn.down.origin
            made.append(
                Node(name, kind, ins, tuple(f"{name}{out}" for out in outs), attrs, of, origin, ffn.down.span)  # type: ignore[arg-type]
            )
            return name

        def weight(name: str, *shape: int, sharded: bool = False) -> str:
            params[name] = Param(name, Tensor(row.dtype, tuple(map(Dim, shape))), sharded)
            return name

        asked, width = x, row.shape[1].scale
        if self.router:
            look = Tensor(row.dtype, (TOKENS, Dim(self.router)))
            first = weight(ffn.router_up, self.router, width)
            asked = op("_look", "gemm", (x,), GemmAttrs(self.router), {"": look}, first)
            asked = op("_seen", "activation", (asked,), ActAttrs(Act.RELU), {"": look})
            width = self.router
        chosen = {".experts": DType.INT64, ".weights": DType.FP32}
        route = op(
            "_router",
            "route",
            (asked,),
            RouteAttrs(self.experts, k, weighted=False),
            {out: Tensor(dtype, (TOKENS, Dim(k))) for out, dtype in chosen.items()},
            weight(ffn.router, self.experts, width),
        )
        ids, weights = f"{route}.experts", f"{route}.weights"
        to = rows(f"{y}_sent")
        copies = RowsAttrs(self.experts, k)
        sent = op("_sent", "dispatch", (x, ids), copies, {"": Tensor(row.dtype, (to, row.shape[1]))})
        inner = Tensor(row.dtype, (to, Dim(wide)))
        up, down = ffn.up.attrs, ffn.down.attrs
        assert isinstance(up, GemmAttrs) and isinstance(down, GemmAttrs)
        for name, axis in ((ffn.up.params[0], up.transposed), (ffn.down.params[0], not down.transposed)):
            out, wide_in = (dim.scale for dim in graph.param[name].type.shape)
            cut = (out, wide_in // self.experts) if axis else (out // self.experts, wide_in)
            weight(name, self.experts, *cut, sharded=True)
        for name in ffn.up.params[1:]:
            weight(name, self.experts, wide, sharded=True)
        gemm = ExpertGemmAttrs(self.experts, wide, up.bias, up.transposed)
        h = op("_up", "expert_gemm", (sent,), gemm, {"": inner}, *ffn.up.params)
        h = op("_act", "activation", (h,), ffn.act.attrs, {"": inner})
        gemm = ExpertGemmAttrs(self.experts, down.out, False, down.transposed)
        back = Tensor(row.dtype, (to, Dim(down.out)))
        h = op("_down", "expert_gemm", (h,), gemm, {"": back}, *ffn.down.params)
        op("", "combine", (h, ids, weights), copies, {"": graph.types[y]})
        return made


def ffns_of(graph: Graph) -> list[Ffn]:
    """The ungated FFNs on tokens whose neurons are zero where they do not fire, in order."""
    found = []
    for down in graph.nodes:
        act = graph.maker.get(down.ins[0]) if down.kind == "gemm" else None
        if act is None or not isinstance(act.attrs, ActAttrs) or act.attrs.fn not in (Act.RELU, Act.RELU2):
            continue
        up = graph.maker.get(act.ins[0])
        alone = graph.users[act.outs[0]] == [down] and graph.users[act.ins[0]] == [act]
        if up is not None and up.kind == "gemm" and alone and not {*act.outs, *up.outs} & {*graph.results}:
            found.append(Ffn(up, act, down))
    return found
