"""Shared: products of experts that ranks of etp share: first each makes columns of its own, then a part of a sum."""

from __future__ import annotations

from dataclasses import replace

from epsc.ir.attrs import ActAttrs, ExpertGemmAttrs
from epsc.ir.dims import Dim, Tensor
from epsc.ir.source import Span
from epsc.ir.spec import Expr
from epsc.passes.arguments import Arguments
from epsc.passes.bound import Product, Rows, Scope


class Shared(Arguments):
    """What etp asks of what stands between a dispatch and its combine."""

    def _shared_product(self, name: str, x: Rows, product: Product, experts: int, shared: bool, scope: Scope) -> Rows:
        """The first product makes the columns of this rank, the second of these columns a part of the sum."""
        weight, out, options, span = product.weight, product.out, product.options, product.span
        first = not x.shard
        self._no_sum(x, "gemm", span)
        width = x.type.shape[-1].scale * (1 if first else self.etp)
        if first and out % self.etp:
            self._uneven(out, span)
        if not first and options.get("bias"):
            self.faults.add(
                "etp", "a bias behind a sum over etp would be added by each rank", span, help="set etp to 1"
            )
        turned = bool(options.get("transposed"))
        made = out // self.etp if first else out
        params = [
            self._param(
                weight,
                (experts, *((width, out) if turned else (out, width))),
                True,
                scope,
                span,
                shared,
                -2 if first is not turned else -1,
            )
        ]
        if options.get("bias"):
            params.append(self._param(f"{weight}.bias", (experts, out), True, scope, span, shared, -1))
        tensor = Tensor(x.type.dtype, (x.type.shape[0], Dim(made)))
        attrs = ExpertGemmAttrs(experts, out=made, **options)
        self._emit(name, "expert_gemm", (x.name,), attrs, (tensor,), scope, span, tuple(params), product.origin)
        return replace(x, name=name, type=tensor, shard="columns" if first else "sum")

    def _no_sum(self, x: Rows, what: str, span: Span | None) -> None:
        if x.shard == "sum":
            self.faults.add(
                "etp",
                f"`{what}` of a part of a sum: the ranks that share an expert sum it on its way home",
                span,
                help="set etp to 1",
            )

    def _alike(self, expr: Expr, kind: str, a: Rows, b: Rows) -> bool:
        """Whether ranks that share an expert can take two values together; adds a fault."""
        if a.shard == b.shard and not (kind == "mul" and a.shard == "sum"):
            return True
        self.faults.add("etp", f"ranks that share an expert cannot {kind} these: one is a part of a sum", expr.span)
        return False

    def _uneven(self, width: int, span: Span | None) -> None:
        self.faults.add(
            "etp",
            f"{width} columns of an expert cannot be shared evenly by etp = {self.etp} ranks",
            span,
            help=f"etp must divide {width}",
        )

    def _side_by_side(self) -> None:
        """Gate and up lie side by side in a weight: each rank takes its columns of either."""
        gated = {
            node.ins[0]
            for node in self.nodes
            if isinstance(node.attrs, ActAttrs) and node.attrs.fn.gated and not node.attrs.interleaved
        }
        if self.etp == 1:
            return
        for node in reversed(self.nodes):  # through sums of products to their weights
            if node.kind in ("add", "mul") and gated & set(node.outs):
                gated |= set(node.ins)
            if node.kind != "expert_gemm" or not gated & set(node.outs):
                continue
            for name in node.params:
                param = self.params[name]
                if param.type.shape[param.dim].scale % (2 * self.etp):
                    self._uneven(param.type.shape[param.dim].scale // 2, node.span)
                self.params[name] = replace(param, parts=2)
