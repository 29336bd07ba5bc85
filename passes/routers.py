"""Routers: what decides which experts a token goes to, in the layer or outside of it."""

from __future__ import annotations

from epsc.ir.attrs import RouteAttrs, RoutingAttrs
from epsc.ir.dims import Dim, DType, Tensor
from epsc.ir.spec import Call
from epsc.passes.arguments import USAGE, Arguments
from epsc.passes.bound import ANY, Bound, Ids, Route, Rows, Scope


class Routers(Arguments):
    """`route` and `routing`."""

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
        name = self._named(scope, want, "route")
        local = name.removeprefix(scope.prefix)
        params = [self._param(f"{local}.weight", (count, x.type.shape[1].scale), False, scope, call.span, shared)]
        params += [
            self._param(f"{local}.{bias}", (count,), False, scope, call.span, shared)
            for bias in ("bias", "choice_bias")
            if getattr(attrs, bias)
        ]
        types = (Tensor(DType.INT64, (x.type.shape[0], Dim(k))), Tensor(DType.FP32, (x.type.shape[0], Dim(k))))
        self._emit(name, "route", (x.name,), attrs, types, scope, call.span, tuple(params))
        span, partial = spans.get("experts", call.span), attrs.threshold > 0
        return Route(attrs, f"{name}.experts", f"{name}.weights", span, partial=partial)

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
        partial = bool(options.get("partial"))
        return Route(RouteAttrs(count, k), ids.name, weights.name, spans.get("experts"), partial=partial)
