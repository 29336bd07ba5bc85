"""Paths: the ways to capture a block, in order, and why each that was tried did not do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.fx import GraphModule

from epsc.grammar.trace.capture import (
    LEAD,
    Captured,
    Seam,
    ancestors,
    experts_nodes,
    exported,
    opaque,
    read_by,
    seams,
)
from epsc.grammar.trace.form import form, most_experts
from epsc.grammar.trace.loops import candidates, inside, replaced
from epsc.grammar.trace.probe import Inputs
from epsc.grammar.trace.seam import add_site, forgotten, marking
from epsc.grammar.trace.spans import module_span
from epsc.grammar.trace.tracer import traced
from epsc.ir.errors import Diagnostic, EpsError

TOKENS = 8
"""Tokens of the example that is traced, for each expert that there may be: all must be chosen."""

ADVICE = "mark the experts in the code: `y = epsc.mark_experts(function, hidden, ids, weights)`"


@contextmanager
def capture(module: nn.Module, inputs: Inputs, dtype: torch.dtype, pick: int = -1) -> Iterator[Captured]:
    """The block as a graph with one experts node. Raises EpsError when it has none.

    `pick` is that of an earlier capture of the same module; without it the module is an fp32 twin, whose experts can
    be looked at.
    """
    with ExitStack() as stack:
        stack.enter_context(forgotten())
        if pick >= 0:
            yield _written_out(module, inputs, dtype, pick)
            return
        marks = stack.enter_context(marking())
        found = seams(module, inputs.made(LEAD[-len(inputs.leading) :], 0, dtype))
        if len(found) + len(marks.sites) > 1:
            names = ", ".join(f"`{name}`" for name, _ in found) or "marked"
            raise _refusal(module, f"has {len(found) + len(marks.sites)} sets of experts: {names}")
        seam = stack.enter_context(opaque(module, *found[0])) if found else None
        if seam is None and marks.sites:
            seam = Seam("", next(iter(marks.sites.values())))
        if seam is None:
            yield _written_out(module, inputs, dtype, pick)
            return
        graph, how = _graph(module, inputs, dtype)
        nodes = experts_nodes(graph.graph)
        if len(nodes) != 1:
            raise _refusal(module, f"calls its experts {len(nodes)} times")
        yield Captured(module, graph, nodes[0], seam, how)


def _graph(module: nn.Module, inputs: Inputs, dtype: torch.dtype) -> tuple[GraphModule, str]:
    """By torch.export, else by the tracer, which takes more of Python."""
    try:
        return exported(module, inputs, dtype), "torch.export"
    except Exception as error:
        try:
            return traced(module, inputs.made(LEAD[-len(inputs.leading) :], 0, dtype)), "torch.fx"
        except Exception as second:
            first = str(error).strip().splitlines()[0]
            raise _refusal(
                module, f"can be captured neither by torch.export ({first}) nor by torch.fx ({second})"
            ) from None


def _written_out(module: nn.Module, inputs: Inputs, dtype: torch.dtype, pick: int) -> Captured:
    """A block whose experts are in its own code: loops, einsums, gathers."""
    count = TOKENS * most_experts(dict(module.named_parameters()))
    lead = (1,) * (len(inputs.leading) - 1)
    try:
        graph = traced(module, inputs.made((*lead, count), 0, dtype))
    except Exception as error:
        raise _refusal(module, f"cannot be traced: {type(error).__name__}: {error}") from None
    tokens = [node for node in graph.graph.nodes if node.op == "placeholder"][inputs.tokens]
    tried = 0
    for i, four in enumerate(candidates(graph)):
        tried += 1
        if pick >= 0 and i != pick:
            continue
        reads = read_by(graph, ancestors(four[3]) - ancestors(*four[:3]))
        seam = Seam("", add_site(inside(graph, four, tokens)), frozenset(reads))
        x, ids = (node.meta["example"] for node in four[:2])
        ffn = None if pick >= 0 else form(module, seam, x.shape[1], ids.shape[1], x.device)
        if ffn or pick >= 0:
            return Captured(module, graph, replaced(graph, four, seam.site), seam, "torch.fx", i, ffn)
    what = "chooses no experts: nothing in it is the numbers of each token's experts, int64 [tokens, k]"
    if tried:
        what = "has experts that epsc cannot tell from the rest of its code"
    raise _refusal(module, what)


def _refusal(module: nn.Module, what: str) -> EpsError:
    message = f"{type(module).__name__} {what}"
    return EpsError(Diagnostic("not-moe", message, module_span(module), help=ADVICE))
