"""Collectives: what the builtins that name a mesh axis, or keep rows where they are, add to the Graph."""

from __future__ import annotations

from dataclasses import replace

from epsc.ir.attrs import CollectiveAttrs, NoAttrs, RowsAttrs
from epsc.ir.dims import TOKENS, Dim, Tensor, rows, tokens_of
from epsc.ir.errors import did_you_mean
from epsc.ir.spec import Call, Name
from epsc.machine.cluster import AXES
from epsc.passes.arguments import USAGE
from epsc.passes.bound import Bound, Route, Rows, Scope
from epsc.passes.ops import Ops


class Collectives(Ops):
    """The builtins of layers in which ranks share tokens."""

    def _select_local(self, call: Call, scope: Scope, want: str) -> Bound:
        """select_local(x, r): the rows of the experts of this rank, where every rank of ep has all tokens."""
        sent = self._tokens_and_route(call, scope, "these rows are dispatched already")
        self._options(call, NoAttrs)
        if sent is None:
            return None
        x, route = sent
        if self.etp > 1:
            self.faults.add("etp", "rows that stay cannot share experts", call.span, help="set etp to 1")
            return None
        if x.type.shape[0] != TOKENS:
            self.faults.add("bad-argument", f"every rank of ep must have these tokens, not {x.type}", call.span)
            return None
        if route.partial:
            self.faults.add(
                "bad-argument",
                "of this route some copies go nowhere, which `select_local` does not know of",
                call.args[1].span,
                help="leave out the `threshold` or `partial`, or write `dispatch`",
            )
            return None
        self._check_shared(route.attrs.experts, route.span)
        name = self._named(scope, want, "select_local")
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
        return self._sum(call, scope, want)

    def _reduce_scatter(self, call: Call, scope: Scope, want: str) -> Bound:
        """reduce_scatter(y, axis): of that sum a share of the tokens."""
        return self._sum(call, scope, want)

    def _sum(self, call: Call, scope: Scope, want: str) -> Bound:
        self._count_args(call, 2)
        self._options(call, NoAttrs)
        if not call.args:
            self.faults.add("bad-argument", f"`{call.fn}` needs {USAGE[call.fn]}", call.span)
            return None
        y, axis = self._expr(call.args[0], scope), self._axis_arg(call, 1)
        if axis is None or y is None:
            return None
        if not isinstance(y, Rows) or y.partial != axis:
            self.faults.add(
                "bad-argument",
                f"these are no parts of a sum over `{axis}`",
                call.args[0].span,
                help=f"`{call.fn}` takes what `scatter_rows` made, over `ep`",
            )
            return None
        return self._over(call, scope, want, replace(y, partial=""), axis, y.type.shape[0])

    def _split_tokens(self, call: Call, scope: Scope, want: str) -> Bound:
        """split_tokens(x, axis): this rank's share of tokens that the ranks of a mesh axis have in common."""
        self._count_args(call, 2)
        self._options(call, NoAttrs)
        x = self._tokens_or_route(call, scope)
        axis = self._axis_arg(call, 1)
        if x is None or axis is None:
            return None
        type = self.types[x.experts] if isinstance(x, Route) else x.type
        if type.shape[0] != TOKENS:
            self.faults.add("bad-argument", f"only tokens that nobody split can be split, not {type}", call.span)
            return None
        if isinstance(x, Route):
            return self._share_of(x, axis, call, scope, want)
        return self._over(call, scope, want, x, axis, tokens_of(axis))

    def _tokens_or_route(self, call: Call, scope: Scope) -> Rows | Route | None:
        """The first argument, of either kind; None after adding a fault."""
        if call.args and isinstance(call.args[0], Name) and isinstance(scope.values.get(call.args[0].name), Route):
            return self._route_arg(call, 0, scope)
        return self._rows_arg(call, 0, scope)

    def _share_of(self, route: Route, axis: str, call: Call, scope: Scope, want: str) -> Bound:
        """What a route decided for this rank's share of the tokens."""
        name = self._named(scope, want, call.fn)
        made = []
        for part, value in (("experts", route.experts), ("weights", route.weights)):
            whole = self.types[value]
            type = Tensor(whole.dtype, (tokens_of(axis), *whole.shape[1:]))
            made.append(f"{name}.{part}")
            self._emit(made[-1], "split_tokens", (value,), CollectiveAttrs(axis), (type,), scope, call.span)
        return replace(route, experts=made[0], weights=made[1], whole=route, axis=axis)

    def _all_gather(self, call: Call, scope: Scope, want: str) -> Bound:
        """all_gather(y, axis): the tokens of which the ranks of a mesh axis have shares."""
        self._count_args(call, 2)
        self._options(call, NoAttrs)
        y, axis = self._rows_arg(call, 0, scope), self._axis_arg(call, 1)
        if y is None or axis is None:
            return None
        if y.type.shape[0] != tokens_of(axis):
            self.faults.add(
                "bad-argument",
                f"these are no shares of tokens over `{axis}`, but {y.type}",
                call.args[0].span,
                help=f"`all_gather(.., {axis})` gives back what `split_tokens(.., {axis})` split",
            )
            return None
        return self._over(call, scope, want, y, axis, TOKENS)

    def _over(self, call: Call, scope: Scope, want: str, rows: Rows, axis: str, made: Dim) -> Rows:
        """A collective over an axis, which makes `made` rows of the columns of `rows`."""
        if call.fn == "reduce_scatter":
            made = tokens_of(axis)
        name = self._named(scope, want, call.fn)
        tensor = Tensor(rows.type.dtype, (made, *rows.type.shape[1:]))
        self._emit(name, call.fn, (rows.name,), CollectiveAttrs(axis), (tensor,), scope, call.span)
        return replace(rows, name=name, type=tensor)

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
