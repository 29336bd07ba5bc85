"""Ops: what each builtin of the language adds to the Graph, with the shapes that it asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from epsc.ir.attrs import (
    Act,
    ActAttrs,
    Attrs,
    ExpertGemmAttrs,
    GemmAttrs,
    NoAttrs,
    RangeAttrs,
    RouteAttrs,
    RoutingAttrs,
    RowsAttrs,
)
from epsc.ir.dims import Dim, DType, Tensor, rows
from epsc.ir.errors import did_you_mean
from epsc.ir.source import Span
from epsc.ir.spec import Binary, Call, Name
from epsc.passes.arguments import USAGE
from epsc.passes.bound import ANY, Bound, Ids, Route, Rows, Scope
from epsc.passes.shared import Shared


class Ops(Shared):
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

    def _route(self, call: Call, scope: Scope, want: str) -> Bound:
        self._count_args(call, 1)
        x = self._rows_arg(call, 0, scope)
        options = self._options(call, RouteAttrs, weights=True)
        shared = bool(options and options.pop("shared", False))
        if x is None:
            return None
        if options is None:
            said = next((keyword for keyword in call.keywords if keyword.name == "experts"), None)
            experts = self.numbers.whole(said.value, "`experts`") if said else None
            options = {"experts": experts or ANY, "top_k": 1}
        attrs = RouteAttrs(**options)
        if x.route:
            self.faults.add("bad-argument", "rows that were dispatched cannot be routed again", call.span)
            return None
        spans = {keyword.name: keyword.span for keyword in call.keywords}
        count, k = attrs.experts, attrs.top_k
        good = True

        def check(holds: bool, code: str, message: str, at: str, help: str | None = None) -> None:
            nonlocal good
            if not holds and count != ANY:
                self.faults.add(code, message, spans.get(at, call.span), help=help)
                good = False

        check(k <= count, "top-k", f"top_k is {k}, but there are only {count} experts", "top_k")
        check(
            count % attrs.groups == 0,
            "groups",
            f"{count} experts are not divisible into {attrs.groups} groups",
            "groups",
        )
        check(
            attrs.weighted or not attrs.renorm,
            "bad-argument",
            "weights that are all 1 cannot be divided by their sum too",
            "renorm",
            "leave `renorm` or `weighted=false` out",
        )
        check(
            attrs.top_groups <= attrs.groups,
            "groups",
            f"top_groups is {attrs.top_groups}, but there are only {attrs.groups} groups",
            "top_groups",
        )
        if good:
            within = count // attrs.groups * attrs.top_groups
            check(
                k <= within,
                "top-k",
                f"top_k is {k}, but {attrs.top_groups} groups hold only {within} experts",
                "top_k",
            )
            check(
                attrs.group_by != "top2" or count // attrs.groups >= 2,
                "groups",
                "group_by=top2 needs at least 2 experts in a group",
                "group_by",
            )
        if not good:
            attrs = RouteAttrs(count, min(k, count))
        name = self._fresh(scope, want if want and want != "return" else "route")
        local = name.removeprefix(scope.prefix)
        params = [self._param(f"{local}.weight", (count, x.type.shape[1].scale), False, scope, call.span, shared)]
        params += [
            self._param(f"{local}.{bias}", (count,), False, scope, call.span, shared)
            for bias in ("bias", "choice_bias")
            if getattr(attrs, bias)
        ]
        types = (Tensor(DType.INT64, (x.type.shape[0], Dim(k))), Tensor(DType.FP32, (x.type.shape[0], Dim(k))))
        self._emit(name, "route", (x.name,), attrs, types, scope, call.span, tuple(params))
        return Route(attrs, f"{name}.experts", f"{name}.weights", spans.get("experts", call.span))

    def _routing(self, call: Call, scope: Scope, want: str) -> Bound:  # noqa: ARG002 - it makes no op to name
        """routing(ids, weights, experts=n): what a router outside of the layer decided."""
        self._count_args(call, 2)
        options = self._options(call, RoutingAttrs)
        if len(call.args) < 2:
            self.faults.add("bad-argument", f"`routing` needs {USAGE['routing']}", call.span)
            return None
        ids, weights = (self._expr(arg, scope) for arg in call.args[:2])
        self.routings |= {value.name for value in (ids, weights) if isinstance(value, Ids | Rows)}
        if not isinstance(ids, Ids):
            if ids is not None:
                self.faults.add(
                    "bad-argument",
                    "the first argument of `routing` is the experts of each token",
                    call.args[0].span,
                    help="declare it in the layer's arguments: `ids: int64[tokens, 8]`",
                )
            return None
        if not isinstance(weights, Rows) or options is None:
            if isinstance(weights, Ids | Route):
                self.faults.add("bad-argument", "here stand the weights of a token's experts", call.args[1].span)
            return None
        wanted = Tensor(DType.FP32, ids.type.shape)
        if weights.type != wanted or weights.route:
            self.faults.add("shape-mismatch", f"the weights must be {wanted}, not {weights.type}", call.args[1].span)
            return None
        count, k = int(options["experts"]), ids.type.shape[1].scale
        spans = {keyword.name: keyword.span for keyword in call.keywords}
        if k > count:
            self.faults.add("top-k", f"a token has {k} experts, but there are only {count}", spans.get("experts"))
            return None
        return Route(RouteAttrs(count, k), ids.name, weights.name, spans.get("experts"))

    def _dispatch(self, call: Call, scope: Scope, want: str) -> Bound:
        self._count_args(call, 2)
        x, route = self._rows_arg(call, 0, scope), self._route_arg(call, 1, scope)
        attrs = self._range(call, route)
        if x is None or route is None or attrs is None:
            return None
        if x.route:
            self.faults.add("bad-argument", "these rows are dispatched already", call.span)
            return None
        if not self._same_tokens(x, route, call):
            return None
        spans = {keyword.name: keyword.span for keyword in call.keywords}
        self._check_shared(attrs.experts, spans.get("experts", call.span) if spans else route.span)
        name = self._fresh(scope, want if want and want != "return" else "dispatch")
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
        selective = count < every or route.attrs.threshold > 0
        return RowsAttrs(count, route.attrs.top_k, first, every if selective else 0)

    def _identity(self, call: Call, scope: Scope, want: str) -> Bound:
        """identity(x, r, first=8): what experts that do nothing make: each token times their weights. Sends nothing."""
        self._count_args(call, 2)
        x, route = self._rows_arg(call, 0, scope), self._route_arg(call, 1, scope)
        attrs = self._range(call, route)
        if x is None or route is None or attrs is None:
            return None
        if x.route:
            self.faults.add("bad-argument", "these rows are dispatched: `identity` takes tokens", call.span)
            return None
        if not self._same_tokens(x, route, call):
            return None
        name = self._fresh(scope, want if want and want != "return" else "identity")
        ins = (x.name, route.experts, route.weights)
        self._emit(name, "identity", ins, attrs, (x.type,), scope, call.span)
        return Rows(name, x.type)

    def _same_tokens(self, x: Rows, route: Route, call: Call) -> bool:
        """Whether a route is one of these tokens; adds a fault."""
        tokens, routed = x.type.shape[0], self.types[route.experts].shape[0]
        if tokens != routed:
            self.faults.add("shape-mismatch", f"the route is one of [{routed}], these rows are [{tokens}]", call.span)
        return tokens == routed

    def _combine(self, call: Call, scope: Scope, want: str) -> Bound:
        return self._home(call, scope, want, "combine", "dispatch")

    def _home(self, call: Call, scope: Scope, want: str, kind: str, sent_by: str) -> Rows | None:
        """Rows back to tokens, by an op of `kind`, which takes what one of kind `sent_by` made."""
        self._count_args(call, 2)
        h, route = self._rows_arg(call, 0, scope), self._route_arg(call, 1, scope)
        self._options(call, NoAttrs)
        if h is None or route is None:
            return None
        if h.route != route:
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
        name = self._fresh(scope, want if want and want != "return" else kind)
        tensor = Tensor(h.type.dtype, (self.types[route.experts].shape[0], h.type.shape[1]))
        ins = (h.name, route.experts, route.weights)
        attrs = replace(h.sent or _all_of(route), etp=self.etp)
        self._emit(name, kind, ins, attrs, (tensor,), scope, call.span)
        return Rows(name, tensor)

    def _gemm(self, call: Call, scope: Scope, want: str) -> Bound:
        self._count_args(call, 3)
        x = self._rows_arg(call, 0, scope)
        options = self._options(call, GemmAttrs, taken=("out",), weights=True)
        if len(call.args) < 3:
            self.faults.add("bad-argument", f"`gemm` needs {USAGE['gemm']}", call.span)
            return None
        if not isinstance(call.args[1], Name):
            self.faults.add("bad-argument", "the second argument of `gemm` names its weight", call.args[1].span)
            return None
        out = self.numbers.whole(call.args[2], "the output width")
        if x is None or options is None or out is None:
            return None
        weight = call.args[1].name
        if weight in scope.values:
            self.faults.add(
                "duplicate-name", f"`{weight}` is a value here, and cannot name a weight too", call.args[1].span
            )
            return None
        # In `h = swiglu(gemm(...))` the gemm takes its weight's name, in `h = gemm(...)` the binding's.
        name = self._fresh(scope, want if want and want != "return" else weight)
        return self._gemm_node(name, x, weight, out, options, scope, call.span)

    def _gemm_node(
        self,
        name: str,
        x: Rows,
        weight: str,
        out: int,
        options: dict[str, Any],
        scope: Scope,
        span: Span | None,
        origin: str = "",
    ) -> Rows:
        width = x.type.shape[-1].scale
        options = dict(options)
        shared = options.pop("shared", False)
        experts = ((x.sent or _all_of(x.route)).experts,) if x.route else ()
        if experts and self.etp > 1:
            return self._shared_gemm(name, x, weight, out, options, scope, span, origin, experts[0], shared)
        shape = (width, out) if options.get("transposed") else (out, width)
        params = [self._param(weight, (*experts, *shape), bool(experts), scope, span, shared)]
        if options.get("bias"):
            params.append(self._param(f"{weight}.bias", (*experts, out), bool(experts), scope, span, shared))
        attrs: Attrs = ExpertGemmAttrs(*experts, out=out, **options) if experts else GemmAttrs(out, **options)
        kind = "expert_gemm" if experts else "gemm"
        tensor = Tensor(x.type.dtype, (x.type.shape[0], Dim(out)))
        self._emit(name, kind, (x.name,), attrs, (tensor,), scope, span, tuple(params), origin)
        return replace(x, name=name, type=tensor)

    def _activation(self, call: Call, scope: Scope, want: str) -> Bound:
        self._count_args(call, 1)
        x = self._rows_arg(call, 0, scope)
        options = self._options(call, ActAttrs, taken=("fn",))
        if x is None or options is None:
            return None
        attrs = ActAttrs(Act(call.fn), **options)
        if unread := attrs.unread:
            said = next(keyword for keyword in call.keywords if keyword.name == unread[0])
            readers = [f"`{fn}`" for fn in Act if said.name not in ActAttrs(fn, **options).unread]
            self.faults.add(
                "bad-argument",
                f"`{call.fn}` does not read `{said.name}`",
                said.span,
                help=f"leave it out: it is for {', '.join(readers)}",
            )
            return None
        name = self._fresh(scope, want or (call.fn if scope.statement == call.fn else f"{scope.statement}.{call.fn}"))
        return self._activation_node(name, x, attrs, scope, call.span)

    def _activation_node(
        self, name: str, x: Rows, attrs: ActAttrs, scope: Scope, span: Span | None, origin: str = ""
    ) -> Rows | None:
        width = x.type.shape[-1].scale
        self._no_sum(x, attrs.fn, span)
        if attrs.fn.gated and x.shard and width % 2:
            self._uneven(width * self.etp // 2, span)
            return None
        if attrs.fn.gated and width % 2:
            self.faults.add(
                "shape-mismatch",
                f"`{attrs.fn}` halves the width, but {width} is odd",
                span,
                help="its input is gate and up side by side: make it 2 * the width that you want",
            )
            return None
        tensor = Tensor(x.type.dtype, (x.type.shape[0], Dim(width // 2 if attrs.fn.gated else width)))
        self._emit(name, "activation", (x.name,), attrs, (tensor,), scope, span, origin=origin)
        return replace(x, name=name, type=tensor)

    def _mlp(self, call: Call, scope: Scope, want: str) -> Bound:
        """mlp(x, act, width) = gemm(act(gemm(x, gate_up, width or 2 * width)), down, width of x)."""
        self._count_args(call, 3)
        x = self._rows_arg(call, 0, scope)
        options = self._options(call, GemmAttrs, taken=("out",), weights=True)
        if len(call.args) < 3 or not isinstance(call.args[1], Name) or call.args[1].name not in set(Act):
            place = call.args[1] if len(call.args) > 1 else call
            named = place.name if isinstance(place, Name) else ""
            self.faults.add("bad-argument", f"`mlp` needs {USAGE['mlp']}", place.span, help=did_you_mean(named, Act))
            return None
        width = self.numbers.whole(call.args[2], "the width of the mlp")
        if x is None or width is None or options is None:
            return None
        attrs = ActAttrs(Act(call.args[1].name))
        origin = want if want and want != "return" else "mlp"
        name = self._fresh(scope, origin)
        local = name.removeprefix(scope.prefix)
        up_weight, down_weight = ("gate_up" if attrs.fn.gated else "up"), "down"
        up = self._gemm_node(
            self._fresh(scope, f"{local}.{up_weight}"),
            x,
            f"{local}.{up_weight}",
            width * (1 + attrs.fn.gated),
            options,
            scope,
            call.span,
            origin,
        )
        act = self._activation_node(self._fresh(scope, f"{local}.act"), up, attrs, scope, call.span, origin)
        assert act is not None
        return self._gemm_node(
            name, act, f"{local}.{down_weight}", x.type.shape[-1].scale, options, scope, call.span, origin
        )


def _all_of(route: Route) -> RowsAttrs:
    """Rows for all experts of a route."""
    return RowsAttrs(route.attrs.experts, route.attrs.top_k)
