"""Collectives: what the builtins that name a mesh axis, or keep rows where they are, add to the Graph."""

from __future__ import annotations

from dataclasses import replace

from epsc.ir.attrs import CollectiveAttrs, NoAttrs, RowsAttrs
from epsc.ir.dims import Tensor, rows
from epsc.ir.errors import did_you_mean
from epsc.ir.spec import Call, Name
from epsc.machine.cluster import AXES
from epsc.passes.arguments import USAGE
from epsc.passes.bound import Bound, Rows, Scope
from epsc.passes.ops import Ops


class Collectives(Ops):
    """The builtins of layers in which ranks share tokens."""

    def _select_local(self, call: Call, scope: Scope, want: str) -> Bound:
        """select_local(x, r): the rows of the experts of this rank, where every rank of ep has all tokens."""
        self._count_args(call, 2)
        x, route = self._rows_arg(call, 0, scope), self._route_arg(call, 1, scope)
        self._options(call, NoAttrs)
        if x is None or route is None:
            return None
        if x.route:
            self.faults.add("bad-argument", "these rows are dispatched already", call.span)
            return None
        name = self._fresh(scope, want if want and want != "return" else "select_local")
        tensor = Tensor(x.type.dtype, (rows(name), x.type.shape[1]))
        attrs = RowsAttrs(route.attrs.experts, route.attrs.top_k)
        self._emit(name, "select_local", (x.name, route.experts), attrs, (tensor,), scope, call.span)
        return Rows(name, tensor, route, name)

    def _scatter_rows(self, call: Call, scope: Scope, want: str) -> Bound:
        """scatter_rows(h, r): back to tokens, as far as the experts of this rank go; the ranks of ep sum it."""
        made = self._home(call, scope, want, "scatter_rows", "select_local")
        return replace(made, partial="ep") if made else None

    def _all_reduce(self, call: Call, scope: Scope, want: str) -> Bound:
        """all_reduce(y, axis): the sum of what the ranks of a mesh axis have."""
        self._count_args(call, 2)
        self._options(call, NoAttrs)
        if not call.args:
            self.faults.add("bad-argument", f"`all_reduce` needs {USAGE['all_reduce']}", call.span)
            return None
        y, axis = self._expr(call.args[0], scope), self._axis_arg(call, 1)
        if axis is None or y is None:
            return None
        if not isinstance(y, Rows) or y.partial != axis:
            self.faults.add(
                "bad-argument",
                f"these are no parts of a sum over `{axis}`",
                call.args[0].span,
                help="`all_reduce` takes what `scatter_rows` made, over `ep`",
            )
            return None
        name = self._fresh(scope, want if want and want != "return" else "all_reduce")
        self._emit(name, "all_reduce", (y.name,), CollectiveAttrs(axis), (y.type,), scope, call.span)
        return replace(y, name=name, partial="")

    def _axis_arg(self, call: Call, index: int) -> str | None:
        """Argument `index` as an axis of the mesh; None after adding a fault."""
        said = call.args[index] if index < len(call.args) else None
        if isinstance(said, Name) and said.name in AXES:
            return said.name
        word = said.name if isinstance(said, Name) else ""
        message = f"`{word}` is no axis of the mesh" if word else f"`{call.fn}` needs {USAGE[call.fn]}"
        known = did_you_mean(word, AXES) if word else None
        self.faults.add("bad-axis", message, (said or call).span, help=known or f"the axes are {', '.join(AXES)}")
        return None
