"""Products: matrix products, what stands between two of them, and the two of an mlp."""

from __future__ import annotations

from dataclasses import replace

from epsc.ir.attrs import Act, ActAttrs, Attrs, ExpertGemmAttrs, GemmAttrs
from epsc.ir.dims import Dim, Tensor
from epsc.ir.errors import did_you_mean
from epsc.ir.source import Span
from epsc.ir.spec import Call, Name
from epsc.passes.arguments import USAGE
from epsc.passes.bound import Bound, Product, Rows, Scope, all_of
from epsc.passes.shared import Shared


class Products(Shared):
    """`gemm`, activations and `mlp`."""

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
        name = self._named(scope, want, weight)
        return self._product(name, x, Product(weight, out, options, call.span), scope)

    def _product(self, name: str, x: Rows, product: Product, scope: Scope) -> Rows:
        width, out = x.type.shape[-1].scale, product.out
        options = dict(product.options)
        shared = options.pop("shared", False)
        experts = ((x.sent or all_of(x.route)).experts,) if x.route else ()
        if experts and self.etp > 1:
            return self._shared_product(name, x, replace(product, options=options), experts[0], shared, scope)
        shape = (width, out) if options.get("transposed") else (out, width)
        weight, span = product.weight, product.span
        params = [self._param(weight, (*experts, *shape), bool(experts), scope, span, shared)]
        if options.get("bias"):
            params.append(self._param(f"{weight}.bias", (*experts, out), bool(experts), scope, span, shared))
        attrs: Attrs = ExpertGemmAttrs(*experts, out=out, **options) if experts else GemmAttrs(out, **options)
        kind = "expert_gemm" if experts else "gemm"
        tensor = Tensor(x.type.dtype, (x.type.shape[0], Dim(out)))
        self._emit(name, kind, (x.name,), attrs, (tensor,), scope, span, tuple(params), product.origin)
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
        origin = self._wanted(want, "mlp")
        name = self._fresh(scope, origin)
        local = name.removeprefix(scope.prefix)
        up_name, up_out = f"{local}.{'gate_up' if attrs.fn.gated else 'up'}", width * (1 + attrs.fn.gated)
        up = Product(up_name, up_out, options, call.span, origin)
        made = self._product(self._fresh(scope, up_name), x, up, scope)
        act = self._activation_node(self._fresh(scope, f"{local}.act"), made, attrs, scope, call.span, origin)
        assert act is not None
        down = Product(f"{local}.down", x.type.shape[-1].scale, options, call.span, origin)
        return self._product(name, act, down, scope)
