"""build: Spec -> Graph. The one bridge between what was said and what is meant.

Resolves names, computes shapes and inlines layers that call layers. Reports everything that does not fit in one go:
a value whose statement failed is poisoned (None), and what reads it stays silent. A route that failed is one all the
same: only its options are wrong, and rows that it sends have shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from epsc.ir.attrs import Act
from epsc.ir.dims import TOKENS, Dim, DType, Tensor
from epsc.ir.errors import Faults, Note, Severity, did_you_mean
from epsc.ir.graph import Graph
from epsc.ir.places import Place, places_in
from epsc.ir.spec import Binary, Bind, Broken, Call, Expr, LayerDecl, Name, Number, Return, Spec
from epsc.passes.arguments import USAGE
from epsc.passes.bound import Bound, Ids, Route, Rows, Scope
from epsc.passes.calls import Calls
from epsc.passes.collectives import Collectives
from epsc.passes.nodes import MAX_NODES
from epsc.passes.numbers import Numbers

FLOATS = (DType.BF16, DType.FP16, DType.FP32)


@dataclass(frozen=True)
class Draft:
    """A layer as far as it could be built."""

    graph: Graph
    """Whole, or of what has no fault."""
    whole: bool
    vague: frozenset[str] = frozenset()
    """Names for schedules of which there may be more ops, or others, once the faults are gone."""


def build(spec: Spec, numbers: Numbers, layer: str | None, ep: int, faults: Faults) -> Graph | None:
    """The Graph of one layer (the last of the file unless named), or None after adding faults."""
    made = draft(spec, numbers, layer, ep, faults)
    return made.graph if made and made.whole else None


def draft(spec: Spec, numbers: Numbers, layer: str | None, ep: int, faults: Faults, etp: int = 1) -> Draft | None:
    """One layer (the last of the file unless named), as far as it can be built; None when there is none.

    `ep` is the number of ranks that share the experts; experts must be divisible by it. `etp` ranks share each expert.
    """
    layers = {decl.name: decl for decl in spec.layers}
    if not layers:
        # Where text could not be read, that may have been the layer: who mends it is told then.
        if not any(fault.code == "syntax" for fault in faults.errors):
            help = "write `layer name(x: bf16[tokens, 4096]) { ... }`"
            faults.add("no-layer", "the file defines no layer", spec.span, help=help)
        return None
    if layer is not None and layer not in layers:
        faults.add("unknown-name", f"there is no layer `{layer}`", help=did_you_mean(layer, layers))
        return None
    decl = layers[layer] if layer else spec.layers[-1]
    return _Builder(layers, numbers, ep, faults, etp).draft(decl)


class _Builder(Collectives, Calls):
    """Layers, their statements, and expressions over them."""

    def __init__(self, layers: Mapping[str, LayerDecl], numbers: Numbers, ep: int, faults: Faults, etp: int) -> None:
        super().__init__(numbers, ep, faults, etp)
        self.layers = layers
        self.active: list[str] = []
        self.vague: set[str] = set()

    def draft(self, decl: LayerDecl) -> Draft:
        before = len(self.faults.errors)
        args: list[Bound] = []
        for arg in decl.args:
            shape = tuple(self._dim(expr) for expr in arg.shape)
            if any(dim is None for dim in shape):
                args.append(None)
                continue
            tensor = Tensor(arg.dtype, tuple(dim for dim in shape if dim is not None))
            ids = arg.dtype is DType.INT64 and bool(args)
            if arg.dtype not in FLOATS and not ids:
                self.faults.add(
                    "bad-dtype",
                    f"`{arg.name}` is {arg.dtype}: a layer works on {', '.join(FLOATS)}",
                    arg.span,
                )
                args.append(None)
                continue
            if len(tensor.shape) != 2 or tensor.shape[0] != TOKENS or not tensor.shape[1].known:
                self.faults.add("shape-mismatch", f"`{arg.name}` must be [tokens, width], not {tensor}", arg.span)
                args.append(None)
                continue
            self.types[arg.name] = tensor
            self.names.add(arg.name)
            args.append(Ids(arg.name, tensor) if ids else Rows(arg.name, tensor))
        if args and isinstance(args[0], Rows):
            self.dtype = args[0].type.dtype
        result = self._layer(decl, args, "")
        self._side_by_side()
        if not decl.args or any(arg.name not in self.routings for arg in decl.args[1:]):
            self.faults.add(
                "bad-layer",
                f"a layer that is compiled takes one value, `{decl.name}` takes {len(decl.args)}",
                decl.span,
                help="what it takes besides must be a routing: `r = routing(ids, weights, experts=8)`",
            )
        if isinstance(result, Route):
            self.faults.add(
                "bad-layer",
                f"`{decl.name}` returns a route, not rows",
                next((s.value.span for s in decl.body if isinstance(s, Return)), decl.span),
                help="a route only says which experts a token chose: return what `combine` gives back",
            )
        if isinstance(result, Rows):
            self._is_rows(result, next(s.value for s in decl.body if isinstance(s, Return)))
        if len(self.faults.errors) > before or not isinstance(result, Rows):
            inputs = tuple(arg.name for arg in decl.args if arg.name in self.types)
            everything = tuple(value for node in self.nodes for value in node.outs)
            return Draft(self._graph(decl, inputs, everything), False, frozenset(self.vague))
        return Draft(self._graph(decl, tuple(arg.name for arg in decl.args), (result.name,)), True)

    def _graph(self, decl: LayerDecl, inputs: tuple[str, ...], results: tuple[str, ...]) -> Graph:
        return Graph(decl.name, inputs, self.types, tuple(self.params.values()), tuple(self.nodes), results)

    def _dim(self, expr: Expr) -> Dim | None:
        if isinstance(expr, Name) and expr.name == "tokens":
            return TOKENS
        size = self.numbers.whole(expr, "a size")
        return None if size is None else Dim(size)

    def _layer(self, decl: LayerDecl, args: list[Bound], prefix: str, places: tuple[Place, ...] = ()) -> Bound:
        if not decl.body or isinstance(decl.body[-1], Bind):
            self.faults.add(
                "no-return",
                f"the layer `{decl.name}` returns nothing",
                decl.body[-1].span if decl.body else decl.span,
                help="end it with `return` and a value",
            )
            return None
        self.active.append(decl.name)
        scope = Scope(prefix, {arg.name: value for arg, value in zip(decl.args, args, strict=True)})
        for arg in decl.args:
            scope.spans[arg.name] = arg.span
        result: Bound = None
        for statement in decl.body:
            scope.statement = statement.name if isinstance(statement, Bind) else "return"
            # A place holds for the statements below it, up to the next one.
            scope.places = places_in(statement.comments.above) or scope.places or places
            before = len(self.faults.errors)
            value = self._expr(statement.value, scope, scope.statement)
            if value is None or len(self.faults.errors) > before:
                self.vague |= self._names_of(statement, set())
            if not isinstance(statement, Bind):
                result = value
                if statement is not decl.body[-1]:
                    self.faults.add("after-return", "nothing after this `return` would run", statement.span)
                continue
            if statement.name in scope.values:
                self.faults.add(
                    "duplicate-name",
                    f"`{statement.name}` is bound twice",
                    statement.span,
                    notes=[Note("first bound here", scope.spans.get(statement.name))],
                    help="give one of them another name",
                )
            scope.values[statement.name] = value
            scope.spans[statement.name] = statement.span
        for name, span in scope.spans.items():
            if name not in scope.used and scope.values.get(name) is not None:
                self.faults.add(
                    "unused-name",
                    f"`{name}` is never used",
                    span,
                    help="use it, or delete its line: nothing of it will be emitted",
                    severity=Severity.WARNING,
                )
        self.active.pop()
        return result

    def _names_of(self, said: Bind | Return | Expr, seen: set[str]) -> set[str]:
        """What a schedule might call the ops of a piece of a layer by, also those of layers that it calls."""
        match said:
            case Bind(name, value):
                return {name} | self._names_of(value, seen)
            case Return(value):
                return self._names_of(value, seen)
            case Binary(_, left, right):
                return self._names_of(left, seen) | self._names_of(right, seen)
            case Call(fn, args):
                found = ({fn} - self.layers.keys()).union(*(self._names_of(arg, seen) for arg in args))
                named = {"gemm": 1, "call": 0}.get(fn)
                if named is not None and len(args) > named and isinstance(word := args[named], Name):
                    found.add(word.name)
                called = args[0].name if fn == "stack" and args and isinstance(args[0], Name) else fn
                if called in self.layers and called not in seen:
                    seen.add(called)
                    found = found.union(*(self._names_of(each, seen) for each in self.layers[called].body))
                return found
        return set()

    def _expr(self, expr: Expr, scope: Scope, want: str = "") -> Bound:
        """The value of an expression; `want` is the binding that it is to be named after, at the top of a statement."""
        match expr:
            case Name(name):
                scope.used.add(name)
                if name in scope.values:
                    return scope.values[name]
                self.faults.add(
                    "unknown-name", f"`{name}` is not bound here", expr.span, help=did_you_mean(name, scope.values)
                )
                return None
            case Number():
                self.faults.add("bad-argument", "a number stands where a value of rows is needed", expr.span)
                return None
            case Binary(op, left, right):
                a, b = self._expr(left, scope), self._expr(right, scope)
                if op not in "+*":
                    self.faults.add("bad-argument", f"`{op}` is not defined on values of rows", expr.span)
                    return None
                return self._elementwise(expr, "add" if op == "+" else "mul", a, b, scope, want)
            case Broken():
                return None
            case Call(fn):
                if scope.statement == "return":
                    # A schedule names what a `return` holds by what it calls: it cannot name the `return`.
                    with scope.inside(fn):
                        return self._call(expr, scope, want)
                return self._call(expr, scope, want)

    def _call(self, expr: Call, scope: Scope, want: str) -> Bound:
        fn = expr.fn
        if fn in BUILTINS:
            return BUILTINS[fn](self, expr, scope, want)
        if fn in set(Act):
            return self._activation(expr, scope, want)
        if fn in self.layers:
            args = [self._expr(arg, scope) for arg in expr.args]
            return self._call_layer(expr, fn, args, scope, want)
        self.faults.add(
            "unknown-name",
            f"`{fn}` is no op and no layer of this file",
            expr.fn_span or expr.span,
            help=did_you_mean(fn, {*BUILTINS, *Act, *self.layers}),
        )
        return None

    def _call_layer(self, call: Call, fn: str, args: list[Bound], scope: Scope, want: str, name: str = "") -> Bound:
        decl = self.layers[fn]
        if fn in self.active:
            through = self.active[self.active.index(fn) + 1 :]
            self.faults.add(
                "recursive-layer",
                f"`{fn}` calls itself" + (f" through {', '.join(f'`{name}`' for name in through)}" if through else ""),
                call.span,
                notes=[Note("defined here", decl.span)],
                help="a layer is inlined where it is called; `stack(block, x, 3)` repeats one",
            )
            return None
        if len(args) != len(decl.args):
            self.faults.add(
                "bad-argument",
                f"`{fn}` takes {len(decl.args)} value{'s' if len(decl.args) != 1 else ''}, not {len(args)}",
                call.span,
                notes=[Note("defined here", decl.span)],
            )
            return None
        for arg, value in zip(decl.args, args, strict=True):
            said = [self._dim(size) for size in arg.shape]
            if (
                isinstance(value, Rows | Ids)
                and None not in said
                and (tuple(said) != value.type.shape or arg.dtype != value.type.dtype)
            ):
                expected = f"{arg.dtype}[{', '.join(map(str, said))}]"
                self.faults.add(
                    "shape-mismatch",
                    f"`{fn}` takes {expected} for `{arg.name}`, this is {value.type}",
                    call.span,
                    notes=[Note("declared here", arg.span)],
                )
                return None
        if not name:
            name = self._named(scope, want, fn)
        return self._layer(decl, args, f"{name}.", scope.places)

    def _stack(self, call: Call, scope: Scope, want: str) -> Bound:
        """stack(layer, x, n, ...): the layer n times, each with weights of its own, each reading what the last one
        made, and what stands behind n."""
        first = call.args[0] if call.args else call
        if len(call.args) < 3 or not isinstance(first, Name) or first.name not in self.layers:
            named = first.name if isinstance(first, Name) else ""
            self.faults.add(
                "bad-argument", f"`stack` needs {USAGE['stack']}", first.span, help=did_you_mean(named, self.layers)
            )
            return None
        value: Bound = self._rows_arg(call, 1, scope)
        times = self.numbers.whole(call.args[2], "the number of layers")
        more = [self._expr(arg, scope) for arg in call.args[3:]]
        name = self._named(scope, want, "layers")
        before, each = len(self.nodes), 0
        for i in range(times or 0):
            value = self._call_layer(call, first.name, [value, *more], scope, want, f"{name}.{i}")
            each = len(self.nodes) - before if i == 0 else each
            if value is None or each == 0:  # nothing more to learn, or a layer that returns its argument
                break
            if i == 0 and before + each * (times or 0) >= MAX_NODES:
                self._too_large(call.span)
                break
        return value


BUILTINS: dict[str, Callable[[_Builder, Call, Scope, str], Bound]] = {
    "route": _Builder._route,
    "routing": _Builder._routing,
    "dispatch": _Builder._dispatch,
    "identity": _Builder._identity,
    "combine": _Builder._combine,
    "select_local": _Builder._select_local,
    "scatter_rows": _Builder._scatter_rows,
    "all_reduce": _Builder._all_reduce,
    "split_tokens": _Builder._split_tokens,
    "all_gather": _Builder._all_gather,
    "reduce_scatter": _Builder._reduce_scatter,
    "gemm": _Builder._gemm,
    "mlp": _Builder._mlp,
    "call": _Builder._opaque,
    "stack": _Builder._stack,
}
