"""What was recognised, as a Spec: the layer that the user could have written, with places in the user's Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from epsc.grammar.trace.experts import Ffn
from epsc.grammar.trace.router import Router
from epsc.grammar.trace.shared import Shared
from epsc.grammar.trace.spans import place_of
from epsc.grammar.trace.weights import Weight
from epsc.ir.attrs import ActAttrs
from epsc.ir.dims import DType
from epsc.ir.source import Span
from epsc.ir.spec import Arg, Binary, Bind, Call, Comments, Expr, Keyword, LayerDecl, Name, Number, Return, Spec


@dataclass(frozen=True)
class Places:
    """Where in the user's Python the parts of a layer are."""

    layer: Span | None = None
    router: Span | None = None
    experts: Span | None = None
    shared: tuple[Span | None, ...] = ()
    reads: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    """Where the weights of the program, by their names, are read."""

    def told(self, *spans: Span | None, weights: tuple[Weight | None, ...] = ()) -> Comments:
        """Comments that name these places, and those where weights are read."""
        read = [span for weight in weights if weight for span in self.reads.get(weight.name, ())]
        places = [place_of(span) for span in (*read, *spans) if span]
        return Comments(above=tuple(dict.fromkeys(place.comment for place in places if place)))


def write(
    name: str,
    hidden: int,
    dtype: DType,
    top_k: int,
    ffn: Ffn,
    router: Router | None,
    shared: tuple[Shared, ...],
    places: Places,
    about: tuple[str, ...] = (),
    partial: bool = False,
) -> Spec:
    """The file of one layer."""
    at = places.experts
    args = [Arg("x", dtype, (Name("tokens"), Number(hidden)), places.layer)]
    if router:
        route = _call("route", [Name("x")], _options(router.attrs, always=("experts", "top_k")), places.router)
    else:
        args += [
            Arg("ids", DType.INT64, (Name("tokens"), Number(top_k)), places.router),
            Arg("weights", DType.FP32, (Name("tokens"), Number(top_k)), places.router),
        ]
        said = {"experts": ffn.every} | ({"partial": True} if partial else {})
        route = _call("routing", [Name("ids"), Name("weights")], said, places.router)
    options = {"bias": True} if ffn.up_bias else {}
    options |= {"transposed": True} if ffn.transposed else {}
    up = _call("gemm", [Name("sent"), Name(ffn.up.name), _wide(ffn.act, ffn.width)], options, at)
    down = _call("gemm", [Name("h"), Name("down"), Number(hidden)], options, at)
    some = {"experts": ffn.experts} if ffn.identities else {}
    ups, downs = (ffn.up, ffn.up_bias), (ffn.down, ffn.down_bias)
    body: list[Bind | Return] = [
        Bind("r", route, places.router, places.told(places.router, weights=router.weights if router else ())),
        Bind("sent", _call("dispatch", [Name("x"), Name("r")], some, at), at, places.told(at)),
        Bind("h", _call(ffn.act.fn.value, [up], _options(ffn.act, never=("fn",)), at), at, places.told(weights=ups)),
        Bind("back", _call("combine", [down, Name("r")], {}, at), at, places.told(at, weights=downs)),
    ]
    added = [places.told(at)] if ffn.identities else []
    result: Expr = Name("back", at)
    if ffn.identities:
        result = Binary("+", result, _call("identity", [Name("x"), Name("r")], {"first": ffn.experts}, at), at)
    for i, branch in enumerate(shared):
        span = places.shared[i] if i < len(places.shared) else None
        binds, term = _branch(branch, shared_name(i), hidden, span, places)
        body += binds
        added.append(places.told(span, weights=(branch.gate,)))
        result = Binary("+", result, term, span)
    above = dict.fromkeys(text for comments in added for text in comments.above)
    body.append(Return(result, at, Comments(above=tuple(above))))
    decl = LayerDecl(name, tuple(args), tuple(body), places.layer, Comments(above=about))
    return Spec((decl,), places.layer)


def shared_name(i: int) -> str:
    """What the i-th branch beside the experts is called."""
    return "shared" if i == 0 else f"shared{i + 1}"


def _branch(
    branch: Shared, name: str, hidden: int, span: Span | None, places: Places
) -> tuple[list[Bind | Return], Expr]:
    if branch.act is None or branch.up is None or branch.down is None:
        return [], Name("x", span)
    options: dict[str, Any] = {"bias": True} if branch.up_bias else {}
    ups, downs = (branch.up, branch.up_bias), (branch.down, branch.down_bias)
    plain = branch.act == ActAttrs(branch.act.fn)
    if plain:
        value = _call("mlp", [Name("x"), Name(branch.act.fn.value), Number(branch.width)], options, span)
        binds: list[Bind | Return] = [Bind(name, value, span, places.told(span, weights=(*ups, *downs)))]
    else:
        up = _call("gemm", [Name("x"), Name(branch.up.name), _wide(branch.act, branch.width)], options, span)
        act = _call(branch.act.fn.value, [up], _options(branch.act, never=("fn",)), span)
        down = _call("gemm", [Name(f"{name}_h"), Name(branch.down.name), Number(hidden)], options, span)
        binds = [
            Bind(f"{name}_h", act, span, places.told(weights=ups)),
            Bind(name, down, span, places.told(span, weights=downs)),
        ]
    term: Expr = Name(name, span)
    if branch.gate:
        gate = _call("sigmoid", [_call("gemm", [Name("x"), Name(branch.gate.name), Number(1)], {}, span)], {}, span)
        term = Binary("*", gate, term, span)
    return binds, term


def _wide(act: ActAttrs, width: int) -> Expr:
    return Binary("*", Number(2), Number(width)) if act.fn.gated else Number(width)


def _options(attrs: object, always: tuple[str, ...] = (), never: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields that are not what they are by default."""
    return {
        field.name: getattr(attrs, field.name)
        for field in fields(attrs)  # type: ignore[arg-type]
        if field.name not in never and (field.name in always or getattr(attrs, field.name) != field.default)
    }


def _call(fn: str, args: list[Expr], options: Mapping[str, Any], span: Span | None) -> Call:
    keywords = tuple(Keyword(name, _scalar(value, span), span) for name, value in options.items())
    spanned = tuple(Name(a.name, span) if isinstance(a, Name) else a for a in args)
    return Call(fn, spanned, keywords, span, span)


def _scalar(value: Any, span: Span | None) -> Expr:
    if isinstance(value, bool):
        return Name(str(value).lower(), span)
    if isinstance(value, int | float):
        return Number(value, span)
    return Name(str(value), span)
