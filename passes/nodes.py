"""Nodes: the ops, values and weights of a layer, as they are added to it."""

from __future__ import annotations

from dataclasses import replace

from epsc.ir.attrs import Attrs
from epsc.ir.dims import Dim, DType, Tensor
from epsc.ir.errors import Faults, Note
from epsc.ir.graph import Node, Param
from epsc.ir.kinds import KINDS
from epsc.ir.source import Span
from epsc.passes.bound import ANY, Scope
from epsc.passes.numbers import Numbers

MAX_NODES = 100_000
"""`stack` is a loop that a file can write; this bounds what it unrolls to."""


class Nodes:
    """What has been built so far; names in it are unique."""

    def __init__(self, numbers: Numbers, ep: int, faults: Faults, etp: int = 1) -> None:
        self.numbers = numbers
        self.ep = ep
        self.etp = etp
        self.faults = faults
        self.nodes: list[Node] = []
        self.types: dict[str, Tensor] = {}
        self.params: dict[str, Param] = {}
        self.param_spans: dict[str, Span | None] = {}
        self.modules: dict[str, tuple[Tensor, Span | None]] = {}
        """What each module that is called makes, and where it was called first."""
        self.names: set[str] = set()
        self.told: set[Span | None] = set()
        """Places whose experts no rank can have as many of: told of once, however many dispatches send to them."""
        self.routings: set[str] = set()
        """Arguments of the layer that hold a routing, not tokens."""
        self.dtype = DType.BF16
        """Of weights: that of the layer's input."""

    @staticmethod
    def _wanted(want: str, kind: str) -> str:
        """The name of the binding at the top of a statement, and what is built if there is none."""
        return want if want and want != "return" else kind

    def _named(self, scope: Scope, want: str, kind: str) -> str:
        return self._fresh(scope, self._wanted(want, kind))

    def _fresh(self, scope: Scope, name: str) -> str:
        name = f"{scope.prefix}{name}"
        unique, n = name, 1
        while unique in self.names:
            n += 1
            unique = f"{name}.{n}"
        self.names.add(unique)
        return unique

    def _emit(
        self,
        name: str,
        kind: str,
        ins: tuple[str, ...],
        attrs: Attrs,
        types: tuple[Tensor, ...],
        scope: Scope,
        span: Span | None,
        params: tuple[str, ...] = (),
        origin: str = "",
    ) -> None:
        outs = tuple(f"{name}{suffix}" for suffix in KINDS[kind].outs)
        self.types.update(zip(outs, types, strict=True))
        made = Node(name, kind, ins, outs, attrs, params, origin or scope.statement, span, places=scope.places)
        self.nodes.append(made)
        if len(self.nodes) == MAX_NODES:
            self._too_large(span)
            self.faults.raise_if_any()

    def _param(
        self,
        name: str,
        shape: tuple[int, ...],
        sharded: bool,
        scope: Scope,
        span: Span | None,
        shared: bool = False,
        cut: int = 0,
    ) -> str:
        """The weight `name` of this scope, or of all scopes that share it; used twice it is one weight, and the shapes
        must agree."""
        full = name if shared else f"{scope.prefix}{name}"
        param = Param(full, Tensor(self.dtype, tuple(map(Dim, shape))), sharded)
        if cut and self.etp > 1:  # the dimension that the ranks of an expert cut
            param = replace(param, etp=self.etp, dim=cut)
        first = self.params.setdefault(full, param)
        unknown = sharded and first.sharded and ANY in (shape[0], first.type.shape[0].scale)
        if first != param and not (unknown and first.type.shape[1:] == param.type.shape[1:]):
            self.faults.add(
                "shape-mismatch",
                f"the weight `{name}` is {param.type} here and {first.type} before",
                span,
                notes=[Note("first used here", self.param_spans[full])],
                help="one name is one weight: give the second a name of its own",
            )
        self.param_spans.setdefault(full, span)
        return full

    def _too_large(self, span: Span | None) -> None:
        self.faults.add("too-large", f"the layer unrolls to more than {MAX_NODES} ops", span)
