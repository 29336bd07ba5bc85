"""Trace: an nn.Module to a Spec, the mapping of its weights, and what of it runs as it was captured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from epsc import driver
from epsc.api.refuse import DTYPES, check_inputs, check_module, refusal
from epsc.api.retell import retold
from epsc.api.verify import Case, Mismatch, cases, verify
from epsc.grammar import format_spec
from epsc.grammar.trace.capture import Captured, attribute
from epsc.grammar.trace.lift import LAYER, Lifted, copied, cut, lift, without_router
from epsc.grammar.trace.paths import capture
from epsc.grammar.trace.probe import Inputs
from epsc.grammar.trace.twin import twin_of
from epsc.grammar.trace.weights import Get, Weight
from epsc.grammar.trace.write import write
from epsc.interpret import interpret
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import Graph
from epsc.ir.source import Source
from epsc.ir.spec import Spec


@dataclass(frozen=True)
class Traced:
    """A module as a layer of the language."""

    module: nn.Module = field(repr=False)
    inputs: Inputs = field(repr=False)
    spec: Spec = field(repr=False)
    """With places in the user's Python."""
    weights: tuple[Weight, ...] = field(repr=False)
    """Of the program: where each lies in the module."""
    lifted: Lifted = field(repr=False)
    dtype: torch.dtype
    path: str
    """How it was captured."""
    frame: GraphModule = field(repr=False)
    """What runs around the layer, of a twin in the module's dtype."""
    before: tuple[tuple[str, str], ...] = field(repr=False)
    """The state of the module when it was traced: names and shapes of its tensors, and its code."""

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """The layer as a `.eps` file."""
        return format_spec(self.spec)

    @property
    def name(self) -> str:
        return self.spec.layers[-1].name

    @property
    def notes(self) -> tuple[str, ...]:
        """What the language could not say, and so runs as captured; what could not be verified."""
        return self.lifted.notes

    def tensors(self) -> dict[str, Tensor]:
        """The module's tensors as the program's weights, those of all experts."""
        self.check_unchanged()
        known = dict([*self.module.named_parameters(), *self.module.named_buffers()])
        return {weight.name: weight.read(lambda name: known[name].detach()) for weight in self.weights}

    def layer(self, options: driver.Options | None = None, more: str = "") -> driver.Layer:
        """The layer as the driver understands it, with further items of the language in `more`. Raises EpsError."""
        text = self.text + (f"\n{more}" if more else "")
        try:
            return driver.understand(Source(f"{self.name}.eps", text), options)
        except EpsError as error:
            raise retold(error, text, self.spec) from None

    def wrapper(self) -> GraphModule:
        """What runs around the layer, with the module's own tensors and parts, and a submodule `layer` in it."""
        self.check_unchanged()
        own = dict([*self.module.named_parameters(), *self.module.named_buffers(), *self.module.named_modules()])
        targets = [str(node.target) for node in self.frame.graph.nodes if node.op in ("get_attr", "call_module")]
        # What the module has no name for are constants of its code.
        parts = {name: own[name] if name in own else attribute(self.frame, name) for name in targets}
        return GraphModule(parts, copied(self.frame.graph))

    def check_unchanged(self) -> None:
        """Raises EpsError when the module is no longer what was traced."""
        now = fingerprint(self.module)
        if now == self.before:
            return
        changed = sorted({name for name, _ in set(now) ^ set(self.before)})
        raise refusal(
            "changed",
            f"{type(self.module).__name__} has changed since it was traced: {', '.join(changed[:4])}",
            self.module,
            "trace it again",
        )


def fingerprint(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """What must stay as it is for a trace to hold."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    shapes = [(name, f"{list(t.shape)} {t.dtype}") for name, t in tensors]
    numbers = [
        (f"{name}.{key}" if name else key, repr(value))
        for name, child in module.named_modules()
        for key, value in vars(child).items()
        if isinstance(value, bool | int | float | str) and key != "training"
    ]
    code = [(name or "forward", str(type(child))) for name, child in module.named_modules()]
    return tuple(shapes + numbers + code)


@torch.inference_mode(False)  # what is made here is used outside of it, too
def trace(module: nn.Module, example_inputs: Sequence[Any] | Tensor | None = None, *, name: str = "") -> Traced:
    """Read a MoE block as a layer. It is verified against the module, on made-up weights, before it is accepted.

    `example_inputs` are the arguments that the module is called with; without them, one tensor of tokens is tried.
    Raises EpsError that says what is no layer of the language, and where it is.
    """
    dtype = check_module(module, weights_given=True)
    inputs = check_inputs(module, example_inputs)
    twin = twin_of(module, torch.float32, inputs.rows.device)
    said = name or _snake(type(module).__name__)
    known = cases(twin, inputs, torch.float32)
    with capture(twin, inputs, torch.float32) as captured:
        lifted, path = lift(twin, captured, inputs), captured.how
        lifted, fault = _accepted(twin, captured, lifted, known, torch.float32, said)
        own = captured
    for kind in dict.fromkeys((torch.bfloat16, dtype)):
        if not fault and kind is not torch.float32:
            other = twin_of(module, kind, inputs.rows.device)
            if kind is not dtype and (why := _stumbles(other, inputs, kind)):
                lifted = replace(lifted, notes=(*lifted.notes, f"not verified in bf16, in which {said} fails: {why}"))
                continue
            known = cases(other, inputs, kind)
            with capture(other, inputs, kind, lifted.pick) as captured:
                lifted, fault = _accepted(other, captured, lifted, known, kind, said)
                own = captured if kind is dtype else own
    if fault:
        raise EpsError(
            Diagnostic(
                "mismatch",
                f"what was read from {type(module).__name__} is not what it computes: {fault}",
                lifted.places.experts,
                help="mark the experts in the code: `epsc.mark_experts(function, hidden, ids, weights)`",
            )
        )
    spec = _spec(lifted, dtype, said, path)
    return Traced(module, inputs, spec, lifted.weights, lifted, dtype, path, cut(own, lifted), fingerprint(module))


def _stumbles(module: nn.Module, inputs: Inputs, dtype: torch.dtype) -> str:
    """Why the module's own code cannot run in a dtype, if it cannot."""
    try:
        with torch.no_grad():
            module(*inputs.made(3, 0, dtype))
    except Exception as error:
        return str(error).strip().splitlines()[0] or type(error).__name__
    return ""


def _accepted(
    module: nn.Module, captured: Captured, lifted: Lifted, known: list[Case], dtype: torch.dtype, name: str
) -> tuple[Lifted, Mismatch | None]:
    """What of the lift holds in that dtype: all, or all but the router; else the mismatch."""
    fault = verify(around(module, captured, lifted, dtype, name), known, dtype)
    if fault and lifted.router:
        # As captured, the router is the module's own.
        second = without_router(
            lifted, f"the router is near one that `route` can say, but {fault}: it runs as captured"
        )
        if not verify(around(module, captured, second, dtype, name), known, dtype):
            return second, None
    return lifted, fault


def _spec(lifted: Lifted, dtype: torch.dtype, name: str, path: str) -> Spec:
    about = (f"Read from Python by epsc trace ({path}).", *lifted.notes)
    return write(
        name,
        lifted.hidden,
        DTYPES[dtype],
        lifted.top_k,
        lifted.ffn,
        lifted.router,
        lifted.shared,
        lifted.places,
        about,
        lifted.partial,
    )


def around(module: nn.Module, captured: Captured, lifted: Lifted, dtype: torch.dtype, name: str) -> GraphModule:
    """The captured block with the layer run by the interpreter."""
    text = format_spec(_spec(lifted, dtype, name, captured.how))
    graph = driver.understand(Source(f"{name}.eps", text)).said
    known = dict([*module.named_parameters(), *module.named_buffers()])
    weights = {weight.name: _readable(weight, known.__getitem__) for weight in lifted.weights}
    made = cut(captured, lifted)
    setattr(made, LAYER, Interpreted(graph, weights))
    return made


def _readable(weight: Weight, get: Get) -> Tensor:
    """The weight, or of many pieces for each expert what the interpreter reads of one: its experts one by one."""
    if not weight.experts or (len(weight.pieces) == 1 and not weight.pieces[0].listed):
        return weight.read(get)
    return cast(Tensor, OneByOne(weight, get))


class OneByOne:
    """A weight whose experts are put together when they are read, so that not all of them are in memory twice."""

    def __init__(self, weight: Weight, get: Get) -> None:
        self.weight, self.get = weight, get
        self.shape = weight.shape
        self.dtype = get(weight.sources[0]).dtype

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getitem__(self, expert: int) -> Tensor:
        return self.weight.one(self.get, expert)


class Interpreted(nn.Module):
    """A layer by the interpreter."""

    def __init__(self, graph: Graph, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.graph, self.given = graph, weights

    def forward(self, x: Tensor, ids: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        inputs = {"x": x}
        if ids is not None and weights is not None:
            inputs |= {"ids": ids.long(), "weights": weights.float()}
        return interpret(self.graph, inputs, self.given)[0]


def _snake(name: str) -> str:
    """MixtralSparseMoeBlock -> mixtral_sparse_moe_block."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name.replace("MoE", "Moe"))
    return "_".join(words).lower() or "layer"
