"""Arguments: what a call of an op was given, checked, with a fault for whatever does not fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from typing import Any, get_type_hints

from epsc.ir.amount import Amount
from epsc.ir.errors import did_you_mean, nearest
from epsc.ir.spec import Broken, Call, Expr, Name
from epsc.passes.bound import Bound, Ids, Route, Rows, Scope
from epsc.passes.nodes import Nodes

USAGE = {
    "route": "the rows to route: route(x, experts=8, top_k=2)",
    "routing": "the experts and weights of each token: routing(ids, weights, experts=8)",
    "dispatch": "rows and a route: dispatch(x, r)",
    "combine": "routed rows and their route: combine(h, r)",
    "identity": "rows and a route: identity(x, r, first=8)",
    "select_local": "rows and a route: select_local(x, r)",
    "scatter_rows": "selected rows and their route: scatter_rows(h, r)",
    "split_tokens": "rows of tokens or a route, and a mesh axis: split_tokens(x, tp)",
    "all_gather": "a share of tokens, and its mesh axis: all_gather(y, tp)",
    "reduce_scatter": "sums of the ranks of a mesh axis, and that axis: reduce_scatter(y, ep)",
    "all_reduce": "sums of the ranks of a mesh axis, and that axis: all_reduce(y, ep)",
    "gemm": "rows, a weight and a width: gemm(x, gate_up, 2*1536)",
    "mlp": "rows, an activation and a width: mlp(x, swiglu, 3072)",
    "call": "the name of a module and rows: call(attention, x)",
    "stack": "a layer, rows and a number: stack(block, x, 61)",
}


class Arguments(Nodes, ABC):
    """Reads arguments. What an expression is worth, `build` says."""

    @abstractmethod
    def _expr(self, expr: Expr, scope: Scope, want: str = "") -> Bound:
        """The value of an expression; `want` is the binding that it is to be named after, at the top of a statement."""

    @abstractmethod
    def _amount(self, expr: Expr, name: str) -> Amount | None:
        """A number that may speak of `tokens`, for the option `name`; None after adding a fault."""

    def _is_rows(self, value: Bound, expr: Expr) -> bool:
        if isinstance(value, Route):
            self.faults.add("bad-argument", "this is a route; rows are needed here", expr.span)
        if isinstance(value, Ids):
            self.faults.add("bad-argument", "these are numbers of experts; rows are needed here", expr.span)
        if isinstance(value, Rows) and value.partial:
            self.faults.add(
                "partial-sum",
                "this is what one rank adds to a sum, not the sum",
                expr.span,
                help=f"sum it over the ranks first: `all_reduce(.., {value.partial})`",
            )
            return False
        return isinstance(value, Rows)

    def _rows_arg(self, call: Call, index: int, scope: Scope) -> Rows | None:
        """Argument `index` as rows; None after adding a fault."""
        if index >= len(call.args):
            self.faults.add("bad-argument", f"`{call.fn}` needs {USAGE.get(call.fn, 'a value')}", call.span)
            return None
        value = self._expr(call.args[index], scope)
        return value if self._is_rows(value, call.args[index]) and isinstance(value, Rows) else None

    def _route_arg(self, call: Call, index: int, scope: Scope) -> Route | None:
        if index >= len(call.args):
            self.faults.add("bad-argument", f"`{call.fn}` needs {USAGE[call.fn]}", call.span)
            return None
        value = self._expr(call.args[index], scope)
        if isinstance(value, Rows | Ids):
            self.faults.add(
                "bad-argument", "a route is needed here, as `r = route(...)` makes it", call.args[index].span
            )
        return value if isinstance(value, Route) else None

    def _count_args(self, call: Call, most: int) -> None:
        if len(call.args) > most:
            self.faults.add(
                "bad-argument", f"`{call.fn}` needs {USAGE.get(call.fn, 'one value')}", call.args[most].span
            )

    def _options(
        self,
        call: Call,
        cls: type,
        taken: tuple[str, ...] = (),
        weights: bool = False,
        least: Mapping[str, int] = {},
    ) -> dict[str, Any] | None:
        """Keyword arguments as fields of the attribute class `cls`, those in `taken` being set otherwise; of an op with
        `weights` also whether they are `shared`. Whole numbers are at least 1, or what `least` says."""
        hints = {k: v for k, v in get_type_hints(cls).items() if k not in taken}
        if weights:
            hints["shared"] = bool
        found: dict[str, Any] = {}
        meant: set[str | None] = set()
        good = True
        for keyword in call.keywords:
            if keyword.name not in hints or keyword.name in found:
                meant.add(nearest(keyword.name, hints))
                problem = "is given twice" if keyword.name in found else f"is no option of `{call.fn}`"
                self.faults.add(
                    "bad-argument", f"`{keyword.name}` {problem}", keyword.span, help=did_you_mean(keyword.name, hints)
                )
                good = False
                continue
            value = self._scalar(keyword.value, hints[keyword.name], keyword.name, least.get(keyword.name, 1))
            good = good and value is not None
            found[keyword.name] = value
        needed = [f.name for f in fields(cls) if f.name in hints and f.default is f.default_factory]
        for name in needed:
            if name not in found and name not in meant:
                self.faults.add("bad-argument", f"`{call.fn}` needs `{name}=...`", call.span)
                good = False
        return found if good else None

    def _scalar(self, expr: Expr, kind: type, name: str, least: int) -> object:
        if isinstance(expr, Broken):
            return None
        if kind is bool or issubclass(kind, StrEnum):
            words = {"true": True, "false": False} if kind is bool else {str(v): v for v in kind}
            word = expr.name if isinstance(expr, Name) else ""
            if word not in words:
                self.faults.add(
                    "bad-argument", f"`{name}` must be {' or '.join(words)}", expr.span, help=did_you_mean(word, words)
                )
                return None
            return words[word]
        if kind is int:
            return self.numbers.whole(expr, f"`{name}`", least)
        if kind is Amount:
            return self._amount(expr, name)
        value = self.numbers.of(expr)
        return None if value is None else float(value)
