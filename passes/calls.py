"""Calls: modules that epsc does not look into, and what their writer says that they cost."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass

from epsc.ir.amount import MOST_DEGREE, Amount
from epsc.ir.attrs import CallAttrs
from epsc.ir.dims import Dim, Tensor
from epsc.ir.errors import Note
from epsc.ir.spec import Binary, Call, Expr, Keyword, Name
from epsc.passes.arguments import USAGE, Arguments
from epsc.passes.bound import Bound, Rows, Scope


@dataclass(frozen=True)
class CallOptions:
    """What `call` can be told."""

    out: int = 0
    """Columns of the result; those of the first value if nothing is said."""
    shared: bool = False
    """One module for all layers that call it so."""
    flops: Amount = Amount()
    bytes: Amount = Amount()
    us: Amount = Amount()


class Calls(Arguments, ABC):
    """`call(attention, x)`: the module `attention`, which the program is given, on rows of tokens."""

    def _opaque(self, call: Call, scope: Scope, want: str) -> Bound:
        module = call.args[0] if call.args else None
        values = [self._rows_arg(call, i, scope) for i in range(1, max(2, len(call.args)))] if module else []
        options = self._call_options(call)
        if not isinstance(module, Name):
            place = module.span if module else call.span
            self.faults.add("bad-argument", f"`call` needs {USAGE['call']}", place)
            return None
        if module.name in scope.values:
            self.faults.add(
                "duplicate-name", f"`{module.name}` is a value here, and cannot name a module too", module.span
            )
            return None
        for value, arg in zip(values, call.args[1:], strict=False):
            if value and value.route:
                self.faults.add(
                    "bad-argument",
                    "a module is given rows of tokens, these were dispatched",
                    arg.span,
                    help="call it before `dispatch`, or on what `combine` brings home",
                )
                return None
        if options is None or None in values:
            return None
        rows = [value for value in values if value]
        first = rows[0].type
        for value, arg in zip(rows, call.args[1:], strict=True):
            if value.type.dtype != first.dtype:
                self.faults.add(
                    "shape-mismatch", f"a module is given values of one element type: this is {value.type}", arg.span
                )
                return None
        name = self._named(scope, want, module.name)
        tensor = Tensor(first.dtype, (first.shape[0], Dim(options.out) if options.out else first.shape[1]))
        full = module.name if options.shared else f"{scope.prefix}{module.name}"
        if not self._one_module(full, tensor, module):
            return None
        attrs = CallAttrs(full, options.flops, options.bytes, options.us)
        self._emit(name, "call", tuple(value.name for value in rows), attrs, (tensor,), scope, call.span)
        return Rows(name, tensor)

    def _one_module(self, full: str, tensor: Tensor, said: Name) -> bool:
        """Whether a module makes the same wherever it is called."""
        first, span = self.modules.setdefault(full, (tensor, said.span))
        if first != tensor:
            self.faults.add(
                "shape-mismatch",
                f"the module `{said.name}` makes {tensor} here and {first} before",
                said.span,
                notes=[Note("first called here", span)],
                help="one name is one module: give the second a name of its own",
            )
        return first == tensor

    def _call_options(self, call: Call) -> CallOptions | None:
        found = self._options(call, CallOptions)
        options = CallOptions(**found) if found is not None else None
        if options and options.us and (options.flops or options.bytes):
            said: Keyword = next(keyword for keyword in call.keywords if keyword.name == "us")
            self.faults.add(
                "bad-argument",
                "a module that was measured needs no `flops` and `bytes` besides",
                said.span,
                help="say `us` alone, or leave it out",
            )
            return None
        return options

    def _amount(self, expr: Expr, name: str) -> Amount | None:
        """A number that may speak of `tokens`; None after adding a fault."""
        found = self._polynomial(expr, name)
        if found is None:
            return None
        if not all(map(math.isfinite, found.terms)):
            self.faults.add("bad-number", "this is too large a number", expr.span)
            return None
        if found.terms[found.degree] < 0:
            self.faults.add("bad-number", f"`{name}` is negative where there are many tokens", expr.span)
            return None
        return Amount(found.terms[: found.degree + 1])

    def _polynomial(self, expr: Expr, name: str) -> Amount | None:
        match expr:
            case Name("tokens"):
                return Amount((0.0, 1.0))
            case Binary(op, left, right):
                a, b = self._polynomial(left, name), self._polynomial(right, name)
                if a is None or b is None:
                    return None
                if op in "+-":
                    return a.plus(b, 1 if op == "+" else -1)
                if op == "*" and a.degree + b.degree > MOST_DEGREE:
                    message = f"`{name}` grows with more than tokens*tokens*tokens, which no module does"
                    self.faults.add("bad-number", message, expr.span)
                    return None
                if op == "*":
                    return a.times(b)
                if b.degree or (op == "//" and a.degree):
                    self.faults.add(
                        "bad-number", f"`{name}` cannot be {'divided by tokens' if b.degree else 'rounded'}", expr.span
                    )
                    return None
                if not b.terms[0]:
                    self.faults.add("bad-number", "this divides by zero", expr.span)
                    return None
                return Amount((a.terms[0] // b.terms[0],)) if op == "//" else a.times(Amount((1 / b.terms[0],)))
        value = self.numbers.of(expr)
        try:
            return None if value is None else Amount((float(value),))
        except OverflowError:
            return Amount((math.inf,))
