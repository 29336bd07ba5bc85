"""Ops: what the builtins that send rows and take them back add to the Graph, and sums of two values."""

from __future__ import annotations

from dataclasses import replace

from epsc.ir.attrs import NoAttrs, RangeAttrs, RowsAttrs
from epsc.ir.dims import Dim, Tensor, rows
from epsc.ir.source import Span
from epsc.ir.spec import Binary, Call
from epsc.passes.bound import ANY, Bound, Route, Rows, Scope, all_of
from epsc.passes.products import Products
from epsc.passes.routers import Routers


class Ops(Routers, Products):
    """The builtins."""

    def _elementwise(self, expr: Binary, kind: str, a: Bound, b: Bound, scope: Scope, want: str) -> Bound:
        if not (self._is_rows(a, expr.left) and self._is_rows(b, expr.right)):
            return None
        assert isinstance(a, Rows) and isinstance(b, Rows)
        if kind == "mul" and a.type.shape[-1] == Dim(1) != b.type.shape[-1]:
            a, b = b, a  # the one-column factor comes second, so that the result has the type of the first
        if not self._alike(expr, kind, a, b):
            return None
        fits = a.type.shape == b.type.shape or (
            kind == "mul" and b.type.shape[-1] == Dim(1) and a.type.shape[:-1] == b.type.shape[:-1]
        )
        if not fits or a.type.dtype != b.type.dtype:
            self.faults.add(
                "shape-mismatch",
                f"cannot {kind} {a.type} and {b.type}",
                expr.span,
                help="routed rows come back to tokens through `combine`" if a.route or b.route else None,
            )
            return None
        name = self._fresh(scope, want or f"{scope.statement}.{kind}")
        self._emit(name, kind, (a.name, b.name), NoAttrs(), (a.type,), scope, expr.span)
        return replace(a, name=name)

    def _dispatch(self, call: Call, scope: Scope, want: str) -> Bound:
        sent = self._tokens_and_route(call, scope, "these rows are dispatched already")
        attrs = self._range(call, sent[1] if sent else None)
        if sent is None or attrs is None:
            return None
        x, route = sent
        spans = {keyword.name: keyword.span for keyword in call.keywords}
        self._check_shared(attrs.experts, spans.get("experts", call.span) if spans else route.span)
        name = self._named(scope, want, "dispatch")
        tensor = Tensor(x.type.dtype, (rows(name), x.type.shape[1]))
        if self.etp > 1 and attrs.selective:
            message = "a dispatch of some of a token's copies goes to experts that no ranks share"
            self.faults.add("etp", message, call.span, help="set etp to 1")
        attrs = replace(attrs, etp=self.etp)
        self._emit(name, "dispatch", (x.name, route.experts), attrs, (tensor,), scope, call.span)
        return Rows(name, tensor, route, name, sent=attrs)

    def _check_shared(self, experts: int, span: Span | None) -> None:
        """Every rank has as many of the experts that rows are sent to."""
        if experts % self.ep and experts != ANY and span not in self.told:
            self.told.add(span)
            self.faults.add(
                "experts-ep",
                f"{experts} experts cannot be shared evenly by ep = {self.ep} ranks",
                span,
                help=f"ep must divide {experts}",
            )

    def _range(self, call: Call, route: Route | None) -> RowsAttrs | None:
        """Which experts of the route a call speaks of: all of them, if it does not say."""
        options = self._options(call, RangeAttrs, least={"first": 0})
        if options is None or route is None:
            return None
        every, first, count = route.attrs.experts, options.get("first", 0), options.get("experts", 0)
        if every == ANY:
            return RowsAttrs(count or every, route.attrs.top_k)
        if first + max(count, 1) > every:
            spans = {keyword.name: keyword.span for keyword in call.keywords}
            said = f"experts {first} to {first + count - 1}" if count > 1 else f"expert {first}"
            self.faults.add(
                "expert-range",
                f"{said}: the route has {every}, counted from 0",
                spans.get("experts", spans.get("first", call.span)),
                help=f"`first` and `experts` together must be at most {every}",
            )
            return None
        count = count or every - first
        selective = count < every or route.partial
        return RowsAttrs(count, route.attrs.top_k, first, every if selective else 0)

    def _identity(self, call: Call, scope: Scope, want: str) -> Bound:
        """identity(x, r, first=8): what experts that do nothing make: each token times their weights. Sends nothing."""
        sent = self._tokens_and_route(call, scope, "these rows are dispatched: `identity` takes tokens")
        attrs = self._range(call, sent[1] if sent else None)
        if sent is None or attrs is None:
            return None
        x, route = sent
        name = self._named(scope, want, "identity")
        ins = (x.name, route.experts, route.weights)
        self._emit(name, "identity", ins, attrs, (x.type,), scope, call.span)
        return Rows(name, x.type)

    def _tokens_and_route(self, call: Call, scope: Scope, dispatched: str) -> tuple[Rows, Route] | None:
        """Tokens and a route of these tokens, or None after adding a fault: `dispatched`, of rows that were sent."""
        self._count_args(call, 2)
        x, route = self._rows_arg(call, 0, scope), self._route_arg(call, 1, scope)
        if x is None or route is None:
            return None
        if x.route:
            self.faults.add("bad-argument", dispatched, call.span)
            return None
        tokens, routed = x.type.shape[0], self.types[route.experts].shape[0]
        if tokens != routed:
            self.faults.add("shape-mismatch", f"the route is one of [{routed}], these rows are [{tokens}]", call.span)
            return None
        return x, route

    def _combine(self, call: Call, scope: Scope, want: str) -> Bound:
        return self._home(call, scope, want, "combine", "dispatch")

    def _home(self, call: Call, scope: Scope, want: str, kind: str, sent_by: str) -> Rows | None:
        """Rows back to tokens, by an op of `kind`, which takes what one of kind `sent_by` made."""
        self._count_args(call, 2)
        h, route = self._rows_arg(call, 0, scope), self._route_arg(call, 1, scope)
        self._options(call, NoAttrs)
        if h is None or route is None:
            return None
        shared = kind == "combine" and h.route is not None and h.route.whole == route
        if h.route != route and not shared:
            what = "these rows were not dispatched" if h.route is None else "these rows were sent by another route"
            self.faults.add("bad-argument", f"{what}: `{kind}` takes back what `{sent_by}` sent", call.args[0].span)
            return None
        if (maker := next(node.kind for node in self.nodes if node.name == h.dispatch)) != sent_by:
            self.faults.add(
                "bad-argument",
                f"these rows come from `{maker}`: `{kind}` takes back what `{sent_by}` made",
                call.args[0].span,
                help=f"write `{'scatter_rows' if kind == 'combine' else 'combine'}`",
            )
            return None
        if self.etp > 1 and h.shard != "sum":
            self.faults.add(
                "etp",
                f"ranks that share an expert must each make a part of a sum: `{kind}` needs what a second product made",
                call.span,
                help="one `gemm`, an activation, one `gemm`; or set etp to 1",
            )
            return None
        name = self._named(scope, want, kind)
        tensor = Tensor(h.type.dtype, (self.types[route.experts].shape[0], h.type.shape[1]))
        ins = (h.name, route.experts, route.weights)
        over = h.route.axis if shared and h.route else ""
        attrs = replace(h.sent or all_of(route), etp=self.etp, over=over)
        if over and attrs.selective:
            self.faults.add(
                "bad-argument",
                f"of these copies some go nowhere, so that nobody knows where those of the other ranks of `{over}` lie",
                call.span,
                help=f"combine by the share of the route, and then `all_gather(.., {over})`",
            )
        self._emit(name, kind, ins, attrs, (tensor,), scope, call.span)
        return Rows(name, tensor)
