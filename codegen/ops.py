"""Ops: what the template of each op kind fills in, as expressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from epsc.codegen.moves import Moves
from epsc.codegen.names import string
from epsc.codegen.one_sided import dispatch_of
from epsc.codegen.regions import columns_of
from epsc.codegen.writer import At, Op, result_of
from epsc.ir.attrs import (
    ActAttrs,
    CallAttrs,
    ExpertGemmAttrs,
    GemmAttrs,
    RowsAttrs,
    SlotAttrs,
)


@dataclass(frozen=True)
class Ops(Moves):
    """What the template of each op kind fills in."""

    def of(self, at: At) -> Op:
        """What the template of a step fills in."""
        return _OPS[at.node.kind](self, at)

    def _route(self, at: At) -> Op:
        params = [f"self.{self.scope.weights[name]}" for name in at.node.params]
        return {**self._results(at), **self._variant(at, self.regions.read(at.step, at.step.reads[0]), *params)}

    def _expert_gemm(self, at: At) -> Op:
        assert isinstance(at.node.attrs, ExpertGemmAttrs)
        dispatch = self.regions.dispatch(at.node)
        low, high = self.regions.local(dispatch, at.cut)
        all_of_them = (low, high) == self.regions.local(dispatch, None)

        left, right = columns_of(at.step.cuts, at.node.attrs.out)
        columns = f"{left}:{right}" if right - left < at.node.attrs.out else ""
        experts = "" if all_of_them else f"{low}:{high}"

        def mine(name: str, of_matrix: str) -> str:
            index = f"[{experts or ':'}, {of_matrix}]" if columns else f"[{experts}]" if experts else ""
            return f"self.{self.scope.weights[name]}{index}"

        transposed = at.node.attrs.transposed
        where = mine(at.node.params[0], f":, {columns}" if transposed else columns)
        if at.node.attrs.slots:
            where = self.regions.read(at.step, next(ref for ref in at.step.reads if ref.value == at.node.ins[-1]))
        weight = where + ("" if transposed else ".mT")
        args = [self.regions.read(at.step, at.step.reads[0]), weight]
        if self.gemms.with_bias:
            args.append(mine(at.node.params[1], columns) if at.node.attrs.bias else "None")
        ends = self.regions.variable(at.node.ins[1])
        if at.cut is not None and dispatch in self.regions.slots:
            ends = f"self.{self.regions.slots[dispatch]}.counted({ends}, part)"
        args += ["part", ends]
        target = self.regions.write(at.step, at.step.writes[0])
        if at.node.kind == "expert_gemm_put":
            args.insert(0, self._slots(at.node))
            args.append(self.regions.variable(at.node.ins[2]))
        elif not self.gemms.own_result(at.node, at.step):
            args.append(target.expr)
        result = result_of(target) if at.node.kind == "expert_gemm" else {}
        return {
            "choose": self.gemms.choice(at.node, at.step),
            "key": string(at.step.key),
            "args": tuple(args),
            **result,
        }

    def _weight_copy(self, at: At) -> Op:
        assert isinstance(at.node.attrs, SlotAttrs)
        local = at.node.attrs.experts // self.schedule.ep
        weight = f"self.{self.scope.weights[at.node.params[0]]}"
        if at.cut:
            first, end = at.cut.index * local // at.cut.count, (at.cut.index + 1) * local // at.cut.count
            weight = f"{weight}[{first}:{end}]"
        # Where the host knows the counts, it brings nothing for experts without rows.
        known = {"rows": "part.rows"} if at.node.ins else {}
        return {"out": self.regions.write(at.step, at.step.writes[0]).expr, "weight": weight, **known}

    def _gemm(self, at: At) -> Op:
        assert isinstance(at.node.attrs, GemmAttrs)
        weight = f"self.{self.scope.weights[at.node.params[0]]}" + ("" if at.node.attrs.transposed else ".T")
        args = [self.regions.read(at.step, at.step.reads[0]), weight]
        if at.node.attrs.bias:
            args.insert(0, f"self.{self.scope.weights[at.node.params[1]]}")
        return {
            "function": "torch.addmm" if at.node.attrs.bias else "torch.mm",
            "args": (*args, f"out={self.regions.write(at.step, at.step.writes[0]).expr}"),
        }

    def _activation(self, at: At) -> Op:
        assert isinstance(at.node.attrs, ActAttrs)
        rows = self.regions.read(at.step, at.step.reads[0])
        return self._variant(at, rows, self.regions.write(at.step, at.step.writes[0]).expr)

    def _elementwise(self, at: At) -> Op:
        refs = {ref.value: ref for ref in at.step.reads}
        a, b = (self.regions.read(at.step, refs[value]) for value in at.node.ins)
        return {"a": a, "b": b, "out": self.regions.write(at.step, at.step.writes[0]).expr}

    def _home(self, at: At, value: str) -> str:
        """The index or the weights of the tokens of a at.cut."""
        name = self.regions.variable(value)
        return f"{name}[{self.regions.rows(value, at.cut, 'part')}]" if at.cut else name

    def _identity(self, at: At) -> Op:
        assert isinstance(at.node.attrs, RowsAttrs)
        attrs, (x, experts, weights) = at.node.attrs, at.step.reads
        return {
            "args": (
                self.regions.read(at.step, x),
                *map(self.regions.variable, (experts.value, weights.value)),
                str(attrs.first),
                str(attrs.first + attrs.experts),
                self.regions.write(at.step, at.step.writes[0]).expr,
            )
        }

    def _unpermute(self, at: At) -> Op:
        assert isinstance(at.node.attrs, RowsAttrs)
        return {
            "selective": "rows_or_zero" if at.node.attrs.selective else "",
            "rows": self.regions.indexed(at.step.reads[0]),
            "index": self._home(at, at.node.ins[1]),
            "out": self.regions.write(at.step, at.step.writes[0]).expr,
        }

    def _weighted_sum(self, at: At) -> Op:
        return {
            **self._weighted(at, self.regions.read(at.step, at.step.reads[0])),
            "out": f"{self.regions.write(at.step, at.step.writes[0]).expr}.unsqueeze(1)",
        }

    def _weighted(self, at: At, copies: str) -> Op:
        """Operands of a product [tokens, 1, k] x [tokens, k, hidden]."""
        assert isinstance(at.node.attrs, RowsAttrs)
        weights = self._home(at, at.node.ins[1])
        width = self.schedule.graph.types[at.node.ins[0]].shape[1].scale
        return {
            "weights": f"{weights}.to({copies}.dtype).unsqueeze(1)",
            "copies": f"{copies}.view(-1, {at.node.attrs.top_k}, {width})",
        }

    def _unpermute_sum(self, at: At) -> Op:
        rows = self.regions.indexed(at.step.reads[0])
        place, weights = (self._home(at, value) for value in at.node.ins[1:3])
        out = self.regions.write(at.step, at.step.writes[0]).expr
        return self._variant(at, rows, place, weights, out, *self._addend(at, 3))

    def _one_sided(self, at: At) -> Op:
        """A method of the slots of a dispatch, on what the op reads; those of what ranks know of each other, and of
        rows that others write, are theirs already."""
        node, graph = at.node, self.schedule.graph
        makers = {value: graph.maker[value] for value in node.ins if value in graph.maker}
        theirs = {value for value, maker in makers.items() if maker.info.one_sided and maker.kind not in KNOWN_HERE}
        reads = node.ins[:2] if node.kind in SUMS else node.ins
        args = [self._read(at, value) for value in reads if value not in theirs]
        if node.kind == "expand":
            args.append(self.regions.variable(node.outs[0]))
        if node.kind in SUMS:
            args += [self.regions.write(at.step, at.step.writes[0]).expr, *self._addend(at, 2)]
        if at.cut is not None:
            dispatch = dispatch_of(graph, node)
            # Where rows are is known together with where they end: one op finds both.
            ends = [] if node.kind == "put_copies" else [f"ends={self.regions.ends(dispatch)}"]
            args += [*ends, f"group={self.regions.group(dispatch, at.cut)}"]
        first, _ = columns_of(at.step.cuts, graph.types[node.outs[0]].shape[-1].scale)
        if first:
            args.append(f"first={first}")
        if node.info.moves_rows and node.kind != "copy_rows" and at.step.sms:
            args.append(f"programs={at.step.sms}")
        outs = ", ".join(map(self.regions.variable, node.outs)) if node.kind in KNOWN_HERE else ""
        method = f"{self._slots(node)}.{node.kind}"
        return {"function": f"{outs} = {method}" if outs else method, "args": tuple(args)}

    def _call(self, at: At) -> Op:
        assert isinstance(at.node.attrs, CallAttrs)
        refs = {ref.value: ref for ref in at.step.reads}
        values = [self.regions.read(at.step, refs[value]) for value in at.node.ins]
        return {
            "args": ("self.given", string(at.node.attrs.module), *values),
            **result_of(self.regions.write(at.step, at.step.writes[0])),
        }


MOVES = ("tell", "put_rows", "copy_rows", "put_copies", "put_sums", "put_back")
SUMS = ("sum_ranks", "sum_copies")
KNOWN_HERE = ("count", "locate", "aim", "put_copies")
"""One-sided kinds whose results are variables of `forward`: what this rank finds out, and rows that a product reads."""
ONE_SIDED = dict.fromkeys((*MOVES, "expand", *SUMS, *KNOWN_HERE))

_OPS: dict[str, Callable[[Ops, At], Op]] = {
    **dict.fromkeys(ONE_SIDED, Ops._one_sided),
    "route": Ops._route,
    "layout": Ops._layout,
    "exchange": Ops._exchange,
    "sizes": Ops._sizes,
    "arrange": Ops._arrange,
    "fetch": Ops._fetch,
    "own_rows": Ops._own_rows,
    "pick_rows": Ops._pick_rows,
    "place_rows": Ops._place_rows,
    "pass_counts": Ops._pass_counts,
    "layout_shares": Ops._layout_shares,
    "all_gather_copies": Ops._gather_copies,
    "gather_counts": Ops._gather_counts,
    "all_gather_rows": Ops._rows_of_ranks,
    "reduce_scatter_rows": Ops._rows_of_ranks,
    "all_reduce": Ops._collective,
    "split_tokens": Ops._split_tokens,
    "all_gather": Ops._shares,
    "reduce_scatter": Ops._shares,
    "permute": Ops._permute,
    "all2all": Ops._all2all,
    "regroup": Ops._regroup,
    "ungroup": Ops._ungroup,
    "expert_gemm": Ops._expert_gemm,
    "expert_gemm_act": Ops._expert_gemm,
    "expert_gemm_put": Ops._expert_gemm,
    "weight_copy": Ops._weight_copy,
    "gemm": Ops._gemm,
    "activation": Ops._activation,
    "add": Ops._elementwise,
    "mul": Ops._elementwise,
    "identity": Ops._identity,
    "unpermute": Ops._unpermute,
    "weighted_sum": Ops._weighted_sum,
    "unpermute_sum": Ops._unpermute_sum,
    "call": Ops._call,
}
