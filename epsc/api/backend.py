"""`torch.compile(model, backend="epsc")`: experts run by compiled layers, the rest by another backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch.fx import GraphModule

from epsc.api.refuse import refusal
from epsc.api.running import Layer
from epsc.grammar.trace.capture import experts_nodes
from epsc.grammar.trace.seam import run_site

RESTS = ("inductor", "eager", "aot_eager")


def backend(
    graph: GraphModule, example_inputs: list[Tensor], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """A captured graph as a callable. Its experts nodes stay calls of the layers that epsc compiled for them.

    `options={"rest": "eager"}`: what runs everything else; inductor by default.
    """
    rest = str((options or {}).get("rest", RESTS[0]))
    if unknown := sorted((options or {}).keys() - {"rest"}) or [each for each in [rest] if each not in RESTS]:
        raise refusal(
            "bad-option", f"the epsc backend knows no `{unknown[0]}`", help=f"`rest` is one of {', '.join(RESTS)}"
        )
    for node in experts_nodes(graph.graph):
        if not isinstance(run_site(int(node.args[3])), Layer):  # type: ignore[arg-type]
            raise refusal("not-compiled", f"the experts of `{node}` are not compiled")
    made: Callable[..., Any] = lookup_backend(rest)(graph, example_inputs)
    return made
