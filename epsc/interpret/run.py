"""One op after another, each checked against its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from epsc.interpret import arithmetic, collectives, lowered, one_sided, said
from epsc.interpret.shapes import Sizes, check_given, checked
from epsc.ir.attrs import CallAttrs, ExpertGemmAttrs
from epsc.ir.graph import Graph
from epsc.ir.shards import whole


def interpret(
    graph: Graph,
    inputs: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    modules: Mapping[str, Callable[..., object]] = {},
) -> tuple[Tensor, ...]:
    """The values of `graph.results`.

    Values keep the dtype of `inputs`, whatever the graph's types say: give float32 or float64 for a reference. A
    weight of another dtype is converted to that of the values it meets. Router scores, the weights that a route makes
    and the sum of a combine are at least float32. Autograd is left as the caller set it.

    `inputs` and `weights` are by name and may hold more than the graph needs; expert weights hold all experts.
    `modules` are what `call` ops run, by `CallAttrs.module`.

    Raises EpsError listing every input, weight and module that is missing and every tensor of the wrong shape, or
    naming the op whose result is not what its type says.
    """
    graph.verify()
    graph = whole(graph)
    sizes = Sizes()
    check_given(graph, inputs, weights, modules, sizes)
    values = {name: inputs[name] for name in graph.inputs}
    for node in graph.nodes:
        ins = [values[name] for name in node.ins]
        if node.kind == "expert_gemm" and len(ins) == 1:
            ins.append(said.ended(graph, node, values))
        params = [weights[name] for name in node.params]
        if isinstance(node.attrs, ExpertGemmAttrs) and node.attrs.slots:
            params[0] = ins.pop()
        if isinstance(node.attrs, CallAttrs):
            made = modules[node.attrs.module](*ins)
        else:
            made = _OPS[node.kind](node.attrs, *ins, *params)
        outs = made if isinstance(made, tuple) else (made,)
        for name, value in zip(node.outs, outs, strict=True):
            values[name] = checked(graph, node, name, value, sizes)
    return tuple(values[name] for name in graph.results)


_OPS: dict[str, Callable[..., object]] = {
    # name in epsc.ir.kinds: (attributes, inputs and parameters in order) -> output or outputs
    "route": said.route,
    "dispatch": said.dispatch,
    "combine": said.combine,
    "identity": said.identity,
    "select_local": said.dispatch,
    "scatter_rows": said.combine,
    "weight_copy": lowered.weight_copy,
    "layout": lowered.layout,
    "exchange": lowered.exchange,
    "pass_counts": lowered.exchange,
    "sizes": lowered.sizes,
    "permute": lowered.permute,
    "all2all": lowered.all2all,
    "arrange": lowered.arrange,
    "regroup": lowered.regroup,
    "ungroup": lowered.ungroup,
    "expert_gemm": arithmetic.expert_gemm,
    "expert_gemm_act": arithmetic.expert_gemm_act,
    "gemm": arithmetic.gemm,
    "activation": arithmetic.activation,
    "add": arithmetic.add,
    "mul": arithmetic.mul,
    "unpermute": lowered.unpermute,
    "weighted_sum": lowered.weighted_sum,
    "unpermute_sum": lowered.unpermute_sum,
    "fetch": collectives.fetch,
    "own_rows": collectives.own_rows,
    "pick_rows": collectives.pick_rows,
    "place_rows": collectives.place_rows,
    "gather_counts": lowered.exchange,
    "all_gather_rows": lowered.all2all,
    "reduce_scatter_rows": lowered.all2all,
    "layout_shares": lowered.layout_shares,
    "all_gather_copies": lowered.all_gather_copies,
    "all_reduce": collectives.same,
    "split_tokens": collectives.same,
    "all_gather": collectives.same,
    "reduce_scatter": collectives.same,
    "count": one_sided.count,
    "tell": one_sided.tell,
    "put_rows": one_sided.put_rows,
    "copy_rows": one_sided.put_rows,
    "locate": one_sided.locate,
    "aim": one_sided.aim,
    "put_copies": one_sided.put_copies,
    "expand": one_sided.expand,
    "put_sums": one_sided.put_sums,
    "put_back": one_sided.put_back,
    "expert_gemm_put": one_sided.expert_gemm_put,
    "sum_copies": one_sided.sum_copies,
    "sum_ranks": one_sided.sum_ranks,
}
