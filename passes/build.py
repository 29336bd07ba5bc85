"""build: Spec -> Graph. The one bridge between what was said and what is meant.

Resolves names, computes shapes and inlines layers that call layers. Reports everything that does not fit in one go:
a value whose statement failed is poisoned (None), and what reads it stays silent. A route that failed is one all the
same: only its options are wrong, and rows that it sends have shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, get_type_hints

from epsc.ir.attrs import Act, ActAttrs, Attrs, ExpertGemmAttrs, GemmAttrs, NoAttrs, RouteAttrs, RowsAttrs
from epsc.ir.dims import TOKENS, Dim, DType, Tensor, rows
from epsc.ir.errors import Faults, Note, Severity, did_you_mean, nearest
from epsc.ir.graph import Graph, Node, Param
from epsc.ir.kinds import KINDS
from epsc.ir.source import Span
from epsc.ir.spec import Binary, Bind, Broken, Call, Expr, LayerDecl, Name, Number, Return, Spec
from epsc.passes.numbers import Numbers

FLOATS = (DType.BF16, DType.FP16, DType.FP32)

MAX_NODES = 100_000
"""`stack` is a loop that a file can write; this bounds what it unrolls to."""


@dataclass(frozen=True)
class Route:
    """What `r = route(...)` binds: not a tensor but a decision, which dispatch and combine read."""

    node: str
    attrs: RouteAttrs


@dataclass(frozen=True)
class Rows:
    """A value of rows: its name in the Graph, and for routed rows the route that sent them."""

    name: str
    type: Tensor
    route: Route | None = None
    dispatch: str = ""


Bound = Route | Rows | None

ANY = 2**31
"""Experts of a route of which nobody knows how many it has."""


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


def draft(spec: Spec, numbers: Numbers, layer: str | None, ep: int, faults: Faults) -> Draft | None:
    """One layer (the last of the file unless named), as far as it can be built; None when there is none.

    `ep` is the number of ranks that share the experts; experts must be divisible by it.
    """
    layers = {decl.name: decl for decl in spec.layers}
    if not layers:
        faults.add(
            "no-layer", "the file defines no layer", spec.span, help="write `layer name(x: bf16[tokens, 4096]) { ... }`"
        )
        return None
    if layer is not None and layer not in layers:
        faults.add("unknown-name", f"there is no layer `{layer}`", help=did_you_mean(layer, layers))
        return None
    decl = layers[layer] if layer else spec.layers[-1]
    return _Builder(layers, numbers, ep, faults).draft(decl)


class _Builder:
    def __init__(self, layers: Mapping[str, LayerDecl], numbers: Numbers, ep: int, faults: Faults) -> None:
        self.layers = layers
        self.numbers = numbers
        self.ep = ep
        self.faults = faults
        self.nodes: list[Node] = []
        self.types: dict[str, Tensor] = {}
        self.params: dict[str, Param] = {}
        self.param_spans: dict[str, Span | None] = {}
        self.names: set[str] = set()
        self.dtype = DType.BF16
        self.active: list[str] = []
        self.vague: set[str] = set()

    def draft(self, decl: LayerDecl) -> Draft:
        before = len(self.faults.errors)
        if len(decl.args) != 1:
            self.faults.add(
                "bad-layer",
                f"a layer that is compiled takes one value, `{decl.name}` takes {len(decl.args)}",
                decl.span,
            )
        args: list[Bound] = []
        for arg in decl.args:
            shape = tuple(self._dim(expr) for expr in arg.shape)
            if any(dim is None for dim in shape):
                args.append(None)
                continue
            tensor = Tensor(arg.dtype, tuple(dim for dim in shape if dim is not None))
            if arg.dtype not in FLOATS:
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
            args.append(Rows(arg.name, tensor))
        if args and isinstance(args[0], Rows):
            self.dtype = args[0].type.dtype
        result = self._layer(decl, args, "")
        if isinstance(result, Route):
            self.faults.add(
                "bad-layer",
                f"`{decl.name}` returns a route, not rows",
                next((s.value.span for s in decl.body if isinstance(s, Return)), decl.span),
                help="a route only says which experts a token chose: return what `combine` gives back",
            )
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

    def _layer(self, decl: LayerDecl, args: list[Bound], prefix: str) -> Bound:
        if not decl.body or isinstance(decl.body[-1], Bind):
            self.faults.add(
                "no-return",
                f"the layer `{decl.name}` returns nothing",
                decl.body[-1].span if decl.body else decl.span,
                help="end it with `return` and a value",
            )
            return None
        self.active.append(decl.name)
        scope = _Scope(prefix, {arg.name: value for arg, value in zip(decl.args, args, strict=True)})
        for arg in decl.args:
            scope.spans[arg.name] = arg.span
        result: Bound = None
        for statement in decl.body:
            scope.statement = statement.name if isinstance(statement, Bind) else "return"
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
                if fn == "gemm" and len(args) > 1 and isinstance(args[1], Name):
                    found.add(args[1].name)
                called = args[0].name if fn == "stack" and args and isinstance(args[0], Name) else fn
                if called in self.layers and called not in seen:
                    seen.add(called)
                    found = found.union(*(self._names_of(each, seen) for each in self.layers[called].body))
                return found
        return set()

    # --- expressions --------------------------------------------------------------------------------------------------

    def _expr(self, expr: Expr, scope: _Scope, want: str = "") -> Bound:
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

    def _call(self, expr: Call, scope: _Scope, want: str) -> Bound:
        fn = expr.fn
        if fn in _OPS:
            return _OPS[fn](self, expr, scope, want)
        if fn in set(Act):
            return self._activation(expr, scope, want)
        if fn in self.layers:
            args = [self._expr(arg, scope) for arg in expr.args]
            return self._call_layer(expr, fn, args, scope, want)
        self.faults.add(
            "unknown-name",
            f"`{fn}` is no op and no layer of this file",
            expr.fn_span or expr.span,
            help=did_you_mean(fn, {*_OPS, *Act, *self.layers}),
        )
        return None

    def _call_layer(self, call: Call, fn: str, args: list[Bound], scope: _Scope, want: str, name: str = "") -> Bound:
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
                isinstance(value, Rows)
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
            name = self._fresh(scope, want if want and want != "return" else fn)
        return self._layer(decl, args, f"{name}.")

    def _elementwise(self, expr: Binary, kind: str, a: Bound, b: Bound, scope: _Scope, want: str) -> Bound:
        if not (self._is_rows(a, expr.left) and self._is_rows(b, expr.right)):
            return None
        assert isinstance(a, Rows) and isinstance(b, Rows)
        if kind == "mul" and a.type.shape[-1] == Dim(1) != b.type.shape[-1]:
            a, b = b, a  # the one-column factor comes second, so that the result has the type of the first
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

    def _is_rows(self, value: Bound, expr: Expr) -> bool:
        if isinstance(value, Route):
            self.faults.add("bad-argument", "this is a route; rows are needed here", expr.span)
        return isinstance(value, Rows)

    def _rows_arg(self, call: Call, index: int, scope: _Scope) -> Rows | None:
        """Argument `index` as rows; None after adding a fault."""
        if index >= len(call.args):
            self.faults.add("bad-argument", f"`{call.fn}` needs {_USAGE.get(call.fn, 'a value')}", call.span)
            return None
        value = self._expr(call.args[index], scope)
        return value if self._is_rows(value, call.args[index]) and isinstance(value, Rows) else None

    def _route_arg(self, call: Call, index: int, scope: _Scope) -> Route | None:
        if index >= len(call.args):
            self.faults.add("bad-argument", f"`{call.fn}` needs {_USAGE[call.fn]}", call.span)
            return None
        value = self._expr(call.args[index], scope)
        if isinstance(value, Rows):
            self.faults.add(
                "bad-argument", "a route is needed here, as `r = route(...)` makes it", call.args[index].span
            )
        return value if isinstance(value, Route) else None

    def _count_args(self, call: Call, most: int) -> None:
        if len(call.args) > most:
            self.faults.add(
                "bad-argument", f"`{call.fn}` needs {_USAGE.get(call.fn, 'one value')}", call.args[most].span
            )

    def _options(self, call: Call, cls: type, taken: tuple[str, ...] = ()) -> dict[str, Any] | None:
        """Keyword arguments as fields of the attribute class `cls`, those in `taken` being set otherwise."""
        hints = {k: v for k, v in get_type_hints(cls).items() if k not in taken}
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
            value = self._scalar(keyword.value, hints[keyword.name], keyword.name)
            good = good and value is not None
            found[keyword.name] = value
        needed = [f.name for f in fields(cls) if f.name in hints and f.default is f.default_factory]
        for name in needed:
            if name not in found and name not in meant:
                self.faults.add("bad-argument", f"`{call.fn}` needs `{name}=...`", call.span)
                good = False
        return found if good else None

    def _scalar(self, expr: Expr, kind: type, name: str) -> object:
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
            return self.numbers.whole(expr, f"`{name}`")
        value = self.numbers.of(expr)
        return None if value is None else float(value)

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _fresh(self, scope: _Scope, name: str) -> str:
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
        scope: _Scope,
        span: Span | None,
        params: tuple[str, ...] = (),
        origin: str = "",
    ) -> None:
        outs = tuple(f"{name}{suffix}" for suffix in KINDS[kind].outs)
        self.types.update(zip(outs, types, strict=True))
        self.nodes.append(Node(name, kind, ins, outs, attrs, params, origin or scope.statement, span))
        if len(self.nodes) == MAX_NODES:
            self._too_large(span)
            self.faults.raise_if_any()

    def _param(self, name: str, shape: tuple[int, ...], sharded: bool, scope: _Scope, span: Span | None) -> str:
        """The weight `name` of this scope; used twice it is one shared weight, and the shapes must agree."""
        full = f"{scope.prefix}{name}"
        param = Param(full, Tensor(self.dtype, tuple(map(Dim, shape))), sharded)
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

    # --- ops ----------------------------------------------------------------------------------------------------------

    def _route(self, call: Call, scope: _Scope, want: str) -> Bound:
        self._count_args(call, 1)
        x = self._rows_arg(call, 0, scope)
        options = self._options(call, RouteAttrs)
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
            count % self.ep == 0,
            "experts-ep",
            f"{count} experts cannot be shared evenly by ep = {self.ep} ranks",
            "experts",
            f"ep must divide {count}",
        )
        check(
            count % attrs.groups == 0,
            "groups",
            f"{count} experts are not divisible into {attrs.groups} groups",
            "groups",
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
        params = [self._param(f"{local}.weight", (count, x.type.shape[1].scale), False, scope, call.span)]
        params += [
            self._param(f"{local}.{bias}", (count,), False, scope, call.span)
            for bias in ("bias", "choice_bias")
            if getattr(attrs, bias)
        ]
        types = (Tensor(DType.INT64, (TOKENS, Dim(k))), Tensor(DType.FP32, (TOKENS, Dim(k))))
        self._emit(name, "route", (x.name,), attrs, types, scope, call.span, tuple(params))
        return Route(name, attrs)

    def _dispatch(self, call: Call, scope: _Scope, want: str) -> Bound:
        self._count_args(call, 2)
        x, route = self._rows_arg(call, 0, scope), self._route_arg(call, 1, scope)
        self._options(call, NoAttrs)
        if x is None or route is None:
            return None
        if x.route:
            self.faults.add("bad-argument", "these rows are dispatched already", call.span)
            return None
        name = self._fresh(scope, want if want and want != "return" else "dispatch")
        tensor = Tensor(x.type.dtype, (rows(name), x.type.shape[1]))
        attrs = RowsAttrs(route.attrs.experts, route.attrs.top_k)
        self._emit(name, "dispatch", (x.name, f"{route.node}.experts"), attrs, (tensor,), scope, call.span)
        return Rows(name, tensor, route, name)

    def _combine(self, call: Call, scope: _Scope, want: str) -> Bound:
        self._count_args(call, 2)
        h, route = self._rows_arg(call, 0, scope), self._route_arg(call, 1, scope)
        self._options(call, NoAttrs)
        if h is None or route is None:
            return None
        if h.route != route:
            what = "these rows were not dispatched" if h.route is None else "these rows were sent by another route"
            self.faults.add("bad-argument", f"{what}: `combine` takes back what `dispatch` sent", call.args[0].span)
            return None
        name = self._fresh(scope, want if want and want != "return" else "combine")
        tensor = Tensor(h.type.dtype, (TOKENS, h.type.shape[1]))
        ins = (h.name, f"{route.node}.experts", f"{route.node}.weights")
        self._emit(name, "combine", ins, RowsAttrs(route.attrs.experts, route.attrs.top_k), (tensor,), scope, call.span)
        return Rows(name, tensor)

    def _gemm(self, call: Call, scope: _Scope, want: str) -> Bound:
        self._count_args(call, 3)
        x = self._rows_arg(call, 0, scope)
        options = self._options(call, GemmAttrs, taken=("out",))
        if len(call.args) < 3:
            self.faults.add("bad-argument", f"`gemm` needs {_USAGE['gemm']}", call.span)
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
        scope: _Scope,
        span: Span | None,
        origin: str = "",
    ) -> Rows:
        width = x.type.shape[-1].scale
        shape = (width, out) if options.get("transposed") else (out, width)
        experts = (x.route.attrs.experts,) if x.route else ()
        params = [self._param(weight, (*experts, *shape), bool(experts), scope, span)]
        if options.get("bias"):
            params.append(self._param(f"{weight}.bias", (*experts, out), bool(experts), scope, span))
        attrs: Attrs = ExpertGemmAttrs(*experts, out=out, **options) if experts else GemmAttrs(out, **options)
        kind = "expert_gemm" if experts else "gemm"
        tensor = Tensor(x.type.dtype, (x.type.shape[0], Dim(out)))
        self._emit(name, kind, (x.name,), attrs, (tensor,), scope, span, tuple(params), origin)
        return replace(x, name=name, type=tensor)

    def _activation(self, call: Call, scope: _Scope, want: str) -> Bound:
        self._count_args(call, 1)
        x = self._rows_arg(call, 0, scope)
        options = self._options(call, ActAttrs, taken=("fn",))
        if x is None or options is None:
            return None
        name = self._fresh(scope, want or (call.fn if scope.statement == call.fn else f"{scope.statement}.{call.fn}"))
        return self._activation_node(name, x, ActAttrs(Act(call.fn), **options), scope, call.span)

    def _activation_node(
        self, name: str, x: Rows, attrs: ActAttrs, scope: _Scope, span: Span | None, origin: str = ""
    ) -> Rows | None:
        width = x.type.shape[-1].scale
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

    def _mlp(self, call: Call, scope: _Scope, want: str) -> Bound:
        """mlp(x, act, width) = gemm(act(gemm(x, gate_up, width or 2 * width)), down, width of x)."""
        self._count_args(call, 3)
        x = self._rows_arg(call, 0, scope)
        options = self._options(call, GemmAttrs, taken=("out",))
        if len(call.args) < 3 or not isinstance(call.args[1], Name) or call.args[1].name not in set(Act):
            place = call.args[1] if len(call.args) > 1 else call
            named = place.name if isinstance(place, Name) else ""
            self.faults.add("bad-argument", f"`mlp` needs {_USAGE['mlp']}", place.span, help=did_you_mean(named, Act))
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

    def _stack(self, call: Call, scope: _Scope, want: str) -> Bound:
        """stack(layer, x, n): the layer n times, each with weights of its own, each reading what the last one made."""
        self._count_args(call, 3)
        first = call.args[0] if call.args else call
        if len(call.args) < 3 or not isinstance(first, Name) or first.name not in self.layers:
            named = first.name if isinstance(first, Name) else ""
            self.faults.add(
                "bad-argument", f"`stack` needs {_USAGE['stack']}", first.span, help=did_you_mean(named, self.layers)
            )
            return None
        value: Bound = self._rows_arg(call, 1, scope)
        times = self.numbers.whole(call.args[2], "the number of layers")
        name = self._fresh(scope, want if want and want != "return" else "layers")
        before, each = len(self.nodes), 0
        for i in range(times or 0):
            value = self._call_layer(call, first.name, [value], scope, want, f"{name}.{i}")
            each = len(self.nodes) - before if i == 0 else each
            if value is None or each == 0:  # nothing more to learn, or a layer that returns its argument
                break
            if i == 0 and before + each * (times or 0) >= MAX_NODES:
                self._too_large(call.span)
                break
        return value

    def _too_large(self, span: Span | None) -> None:
        self.faults.add("too-large", f"the layer unrolls to more than {MAX_NODES} ops", span)


class _Scope:
    """The names of one layer's body while it is built."""

    def __init__(self, prefix: str, values: dict[str, Bound]) -> None:
        self.prefix = prefix
        self.values = values
        self.spans: dict[str, Span | None] = {}
        self.used: set[str] = set()
        self.statement = ""
        """What ops built now come from: a binding, or inside a `return` the name of the call."""

    @contextmanager
    def inside(self, call: str) -> Iterator[None]:
        """Let the ops built in here come from `call`."""
        before, self.statement = self.statement, call
        try:
            yield
        finally:
            self.statement = before


_OPS: dict[str, Callable[[_Builder, Call, _Scope, str], Bound]] = {
    "route": _Builder._route,
    "dispatch": _Builder._dispatch,
    "combine": _Builder._combine,
    "gemm": _Builder._gemm,
    "mlp": _Builder._mlp,
    "stack": _Builder._stack,
}

_USAGE = {
    "route": "the rows to route: route(x, experts=8, top_k=2)",
    "dispatch": "rows and a route: dispatch(x, r)",
    "combine": "routed rows and their route: combine(h, r)",
    "gemm": "rows, a weight and a width: gemm(x, gate_up, 2*1536)",
    "mlp": "rows, an activation and a width: mlp(x, swiglu, 3072)",
    "stack": "a layer, rows and a number: stack(block, x, 61)",
}
