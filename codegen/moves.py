"""Moves: ops that find out where rows go, send them, and put them where they belong."""

from __future__ import annotations

from epsc.codegen.names import string
from epsc.codegen.regions import refuse
from epsc.codegen.writer import At, Op, Writer
from epsc.ir.attrs import (
    CollectiveAttrs,
    Direction,
    RowsAttrs,
    TransferAttrs,
)
from epsc.ir.dims import Axis
from epsc.ir.graph import Node
from epsc.ir.schedule import Step


class Moves(Writer):
    """Layouts, collectives and all2alls."""

    def _layout(self, at: At) -> Op:
        experts = self.regions.variable(at.node.ins[0])
        return {**self._results(at), **self._variant(at, self._layout_of(at.node), experts)}

    def _layout_of(self, node: Node) -> str:
        return f"self.{self.scope.layouts[self.regions.dispatch(node)]}"

    def _transfer(self, step: Step) -> Op:
        return {"comm": string(step.comm)}

    def _exchange(self, at: At) -> Op:
        return {
            "out": self.regions.variable(at.node.outs[0]),
            "counts": self.regions.variable(at.node.ins[0]),
            **self._fetched(at),
            **self._transfer(at.step),
        }

    def _fetched(self, at: At) -> Op:
        """What starts to copy counts to the host: behind the last exchange of them."""
        if any(user.kind == "gather_counts" for user in self.schedule.graph.users[at.node.outs[0]]):
            return {}
        leaving = f"{self.regions.dispatch(at.node)}.layout.counts"
        return {"layout": self._layout_of(at.node), "leaving": self.regions.variable(leaving)}

    def _pass_counts(self, at: At) -> Op:
        out, counts = (self.regions.variable(value) for value in (at.node.outs[0], at.node.ins[0]))
        return {"out": out, "counts": counts, "layout": self._layout_of(at.node), **self._transfer(at.step)}

    def _gather_counts(self, at: At) -> Op:
        out, counts = (self.regions.variable(value) for value in (at.node.outs[0], at.node.ins[0]))
        return {"out": out, "counts": counts, **self._fetched(at), **self._transfer(at.step)}

    def _rows_of_ranks(self, at: At) -> Op:
        """Rows to all ranks that share an expert, or sums back."""
        kind = "all_gather" if at.node.kind == "all_gather_rows" else "reduce_scatter"
        out = self.regions.write(at.step, at.step.writes[0]).expr
        rows = self.regions.read(at.step, at.step.reads[0])
        return {"function": f"self.transport.{kind}", "args": (out, rows, "part.shares", string(at.step.comm))}

    def _sizes(self, at: At) -> Op:
        return {
            "out": self.regions.sizes(self.regions.dispatch(at.node)),
            "layout": self._layout_of(at.node),
            "counts": tuple(map(self.regions.variable, at.node.ins)),
        }

    def _arrange(self, at: At) -> Op:
        index, ends = map(self.regions.variable, at.node.outs)
        sizes = self.regions.sizes(self.regions.dispatch(at.node))
        return {"index": index, "ends": ends, "layout": self._layout_of(at.node), "sizes": sizes}

    def _fetch(self, at: At) -> Op:
        out, counts = (self.regions.variable(value) for value in (at.node.outs[0], at.node.ins[0]))
        args = (counts,) if self.regions.shares_of(self.regions.dispatch(at.node)) else (counts, counts)
        return {"out": out, "counts": counts, "layout": self._layout_of(at.node), "args": args}

    def _layout_shares(self, at: At) -> Op:
        assert isinstance(at.node.attrs, RowsAttrs)
        args = (self.regions.variable(at.node.ins[0]), self.regions.share(at.node.attrs.over)[0])
        return {**self._results(at), "layout": self._layout_of(at.node), "args": args}

    def _gather_copies(self, at: At) -> Op:
        rows, out = self.regions.indexed(at.step.reads[0]), self.regions.indexed(at.step.writes[0])
        if at.cut:
            came = self.regions.part(self.regions.dispatch(self.schedule.graph.maker[at.node.ins[0]]), at.cut)
            rows, out = f"{rows}[{came}.leave]", f"{out}[part.rows]"
        args = (out, rows, "part.counts", string(at.step.comm))
        return {"function": "self.transport.all_gather", "args": args}

    def _own_rows(self, at: At) -> Op:
        index, ends = map(self.regions.variable, at.node.outs)
        args = (self.regions.variable(at.node.ins[0]), self.regions.sizes(self.regions.dispatch(at.node)))
        return {"index": index, "ends": ends, "layout": self._layout_of(at.node), "args": args}

    def _pick_rows(self, at: At) -> Op:
        assert isinstance(at.node.attrs, RowsAttrs)
        index = self._index(at)
        return {
            "rows": self.regions.indexed(at.step.reads[0]),
            "index": index if at.node.attrs.top_k == 1 else f"{index} // {at.node.attrs.top_k}",
            "out": self.regions.write(at.step, at.step.writes[0]).expr,
        }

    def _place_rows(self, at: At) -> Op:
        return {
            "rows": self.regions.read(at.step, at.step.reads[0]),
            "index": self.regions.variable(at.node.ins[1]),
            "out": self.regions.write(at.step, at.step.writes[0]).expr,
        }

    def _collective(self, at: At) -> Op:
        """A method of the transport on rows of tokens."""
        out = self.regions.write(at.step, at.step.writes[0]).expr
        rows = self.regions.read(at.step, at.step.reads[0])
        return {"function": f"self.transport.{at.node.kind}", "args": (out, rows, string(at.step.comm))}

    def _shares(self, at: At) -> Op:
        """One that takes or makes shares of tokens."""
        assert isinstance(at.node.attrs, CollectiveAttrs)
        counts = f"list(map(length, {self.regions.share(at.node.attrs.mesh)[0]}))"
        out = self.regions.write(at.step, at.step.writes[0]).expr
        rows = self.regions.read(at.step, at.step.reads[0])
        return {"function": f"self.transport.{at.node.kind}", "args": (out, rows, counts, string(at.step.comm))}

    def _split_tokens(self, at: At) -> Op:
        assert isinstance(at.node.attrs, CollectiveAttrs)
        axis = at.node.attrs.mesh
        share = f"{self.regions.share(axis)[0]}[{self.regions.place(axis)}]"
        rows = self.regions.read(at.step, at.step.reads[0])
        return {"out": self.regions.write(at.step, at.step.writes[0]).expr, "rows": f"{rows}[{share}]"}

    def _permute(self, at: At) -> Op:
        assert isinstance(at.node.attrs, RowsAttrs)
        order = self.regions.variable(at.node.ins[1])
        if at.cut is not None:
            tokens = self.schedule.graph.types[at.node.ins[1]].shape[0].symbol
            order = f"{order}[{self.regions.tokens(at.cut, at.node.attrs.top_k, tokens)}]"
        return {
            "rows": self.regions.indexed(at.step.reads[0]),
            "index": order if at.node.attrs.top_k == 1 else f"{order} // {at.node.attrs.top_k}",
            "out": self.regions.write(at.step, at.step.writes[0]).expr,
        }

    def _all2all(self, at: At) -> Op:
        assert isinstance(at.node.attrs, TransferAttrs)
        layout = self.regions.layout(self.regions.dispatch(at.node))
        if layout.axis is not Axis.PEER and (at.cut.count if at.cut else 1) != layout.count:
            raise refuse(f"`{at.step.key}` moves another piece than its rows are laid out for ({layout})")
        there = at.node.attrs.direction is Direction.DISPATCH
        rows = self.regions.read(at.step, at.step.reads[0])
        if there and at.cut is None and self.regions.selective(self.regions.dispatch(at.node)):
            rows = f"{rows}[part.leave]"  # behind them lie copies that are not sent
        out = self.regions.write(at.step, at.step.writes[0]).expr
        splits = ("part.leave_splits", "part.arrive_splits")
        args = [out, rows, *(splits[::-1] if there else splits)]
        if "two_level" in at.step.impl.names:
            args += ["part.through", string(at.step.comm), f"home={not there}"]
            return {"function": "self.transport.two_level", "args": tuple(args)}
        return {"function": "self.transport.all_to_all", "args": (*args, string(at.step.comm))}

    def _index(self, at: At) -> str:
        index = self.regions.variable(at.node.ins[1])
        return f"{index}[part.arrive]" if at.cut else index

    def _regroup(self, at: At) -> Op:
        return {
            "rows": self.regions.indexed(at.step.reads[0]),
            "index": self._index(at),
            "out": self.regions.write(at.step, at.step.writes[0]).expr,
        }

    def _ungroup(self, at: At) -> Op:
        rows, out = self.regions.read(at.step, at.step.reads[0]), self.regions.indexed(at.step.writes[0])
        return self._variant(at, rows, self._index(at), out)
