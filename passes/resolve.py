"""resolve: a schedule's directives -> wishes: which ops of the Graph each speaks of, and what it asks of them."""

from __future__ import annotations

from collections.abc import Iterable

from epsc.ir.attrs import CollectiveAttrs, SlotAttrs, TransferAttrs
from epsc.ir.dims import Axis
from epsc.ir.errors import Faults, Note, did_you_mean
from epsc.ir.graph import Graph, Node
from epsc.ir.impls import IMPLS, Choice, Condition, Metric, impls_of
from epsc.ir.kinds import Role
from epsc.ir.schedule import HOST_LANE
from epsc.ir.source import Span
from epsc.ir.spec import (
    Before,
    Beside,
    Name,
    Offload,
    On,
    OverlapNone,
    Reserve,
    ScheduleDecl,
    Split,
    Target,
    Use,
    When,
)
from epsc.passes.numbers import Numbers
from epsc.passes.questions import (
    LOWERED_AXES,
    at_experts,
    axes_of,
    layer_of,
    name_of,
    one_sided_rows,
    uneven,
    why_not_persistent,
)
from epsc.passes.wishes import OneThenOther, Partition, SideBySide, Wishes

_BETWEEN = frozenset({"expert_gemm", "expert_gemm_act", "activation", "add", "mul"})
"""Kinds that work on the rows of experts, where these lie by expert."""


def resolve(
    decl: ScheduleDecl,
    graph: Graph,
    numbers: Numbers,
    ep: int,
    chip_sms: int,
    faults: Faults,
    vague: frozenset[str] = frozenset(),
) -> Wishes:
    """What `decl` asks of the lowered `graph`; adds a fault for everything that the graph or the chip cannot give.

    Of a graph with faults `vague` are the names whose ops may not all be there: nothing is said to be missing of them.
    """
    return _Resolver(decl, graph, numbers.telling(faults), ep, chip_sms, faults, vague).wishes()


class _Resolver:
    def __init__(
        self,
        decl: ScheduleDecl,
        graph: Graph,
        numbers: Numbers,
        ep: int,
        chip_sms: int,
        faults: Faults,
        vague: frozenset[str],
    ) -> None:
        self.decl, self.graph, self.numbers, self.faults = decl, graph, numbers, faults
        self.ep, self.chip_sms, self.vague = ep, chip_sms, vague
        self.named: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in {node.origin, name_of(node), *node.also}:
                self.named.setdefault(name, []).append(node)
        self.named.pop("return", None)
        over: dict[str, list[Node]] = {}
        for node in graph.nodes:
            if isinstance(node.attrs, TransferAttrs | CollectiveAttrs):
                over.setdefault(node.attrs.mesh, []).append(node)
        self.named = over | self.named

    def wishes(self) -> Wishes:
        splits: dict[str, tuple[Axis, int]] = {}
        spans: dict[str, Span | None] = {}
        choices: dict[str, Choice] = {}
        choice_spans: dict[str, Span | None] = {}
        lanes: dict[str, str] = {}
        partitions: list[Partition] = []
        besides: list[SideBySide] = []
        befores: list[OneThenOther] = []
        overlap = True
        for directive in self.decl.directives:
            match directive:
                case Split():
                    for name, cut in self._split(directive).items():
                        if splits.get(name, cut) != cut:
                            self.faults.add(
                                "split-twice",
                                f"`{self.graph.node[name].origin}` is split twice, in two ways",
                                directive.span,
                                notes=[Note("first here", spans[name])],
                            )
                        splits.setdefault(name, cut)
                        spans.setdefault(name, directive.span)
                case Use():
                    for name, choice in self._use(directive).items():
                        if name in choices:
                            self.faults.add(
                                "use-twice",
                                f"an implementation of `{name_of(self.graph.node[name])}` is chosen twice",
                                directive.span,
                                notes=[Note("first here", choice_spans[name])],
                            )
                        choices[name] = choice
                        choice_spans[name] = directive.span
                case Reserve():
                    partition = self._reserve(directive)
                    if partition:
                        partitions.append(partition)
                case Beside(targets, others, span):
                    these, those = self._names(targets), self._names(others)
                    if set(these) & set(those):
                        self.faults.add("beside-itself", "an op cannot run beside itself", span)
                    besides.append(SideBySide(these, those, span))
                case Before(targets, others, span):
                    these, those = self._names(targets), self._names(others)
                    if set(these) & set(those):
                        self.faults.add("before-itself", "an op cannot run before itself", span)
                    befores.append(OneThenOther(self._pairs(these, those), span))
                case On(targets, lane, span):
                    if lane == HOST_LANE:
                        self.faults.add(
                            "host-lane",
                            f"nothing can be sent to `{HOST_LANE}`: that is the host itself",
                            span,
                            help="give the lane another name",
                        )
                        continue
                    for target in targets:
                        for node in self._transfers(target) or self._nodes(target):
                            lanes[node.name] = lane
                case OverlapNone():
                    overlap = False
        self._split_offloaded(splits, spans)
        reserved = sum(partition.sms for partition in partitions)
        if partitions and reserved >= self.chip_sms:
            self.faults.add(
                "sms-over-chip",
                f"{reserved} SMs are reserved of the {self.chip_sms} that the chip has: none are left for the GEMMs",
                partitions[-1].span,
                help="leave SMs for the GEMMs that should run beside the transfers",
                notes=[Note(f"{p.sms} SMs here", p.span) for p in partitions[:-1]],
            )
        for partition in partitions:
            self._check_partition(partition, lanes)
        return Wishes(
            self.decl.name,
            splits,
            spans,
            choices,
            tuple(partitions),
            tuple(besides),
            tuple(befores),
            lanes,
            overlap,
            choice_spans,
        )

    def _split_offloaded(self, splits: dict[str, tuple[Axis, int]], spans: dict[str, Span | None]) -> None:
        """What reads weights that come one expert at a time is done one expert at a time."""
        said = next((each.span for each in self.decl.directives if isinstance(each, Offload)), None)
        for copy in self.graph.nodes:
            if not isinstance(copy.attrs, SlotAttrs):
                continue
            (gemm,) = self.graph.users[copy.outs[0]]
            rows = self.graph.types[gemm.ins[0]].shape[0].symbol
            one_each = Axis.EXPERT_GROUP, copy.attrs.experts // self.ep
            between = [
                node
                for node in self.graph.nodes
                if node.kind in _BETWEEN and self.graph.types[node.outs[0]].shape[0].symbol == rows
            ]
            for node in (copy, *between) if one_each[1] > 1 else ():
                if splits.get(node.name, one_each) != one_each:
                    self.faults.add(
                        "split-mismatch",
                        f"`{node.origin}` is split, but the weights that it is made with come one expert at a time:"
                        f" {one_each[1]} on each rank",
                        spans.get(node.name),
                        notes=[Note("offloaded here", said)],
                        help=f"leave out the `split`, or split `{node.origin}` by expert_group into {one_each[1]}",
                    )
                splits[node.name] = one_each
                spans.setdefault(node.name, said)

    # --- targets ------------------------------------------------------------------------------------------------------

    def _nodes(self, target: Target) -> list[Node]:
        found = self.named.get(target.name, [])
        if not found and target.name not in self.vague:
            self.faults.add(
                "unknown-target",
                f"the layer has no `{target.name}`",
                target.span,
                help=did_you_mean(target.name, {*self.named, *self.vague}),
            )
        return found

    def _names(self, targets: Iterable[Target]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node.name for target in targets for node in self._nodes(target)))

    def _pairs(self, these: Iterable[str], those: Iterable[str]) -> tuple[tuple[str, str], ...]:
        """Each of `these` with each of `those`; in a stack, where a layer has both, those of the same layer only."""
        layer = {name: layer_of(self.graph.node[name]) for name in (*these, *those)}
        both = {layer[name] for name in these} & {layer[name] for name in those}
        return tuple((a, b) for a in these for b in those if layer[a] == layer[b] or not {layer[a], layer[b]} & both)

    def _transfers(self, target: Target) -> list[Node]:
        return [node for node in self.named.get(target.name, []) if node.info.role is Role.TRANSFER]

    # --- directives ---------------------------------------------------------------------------------------------------

    def _split(self, split: Split) -> dict[str, tuple[Axis, int]]:
        # First of all: a name that is not there is told of whatever else is wrong.
        named = [(target, self._nodes(target)) for target in split.targets]
        count = self._chunks(split)
        found: dict[str, tuple[Axis, int]] = {}
        if count is None:
            return found
        if split.axis not in LOWERED_AXES:
            self.faults.add(
                "axis",
                f"no pass cuts along `{split.axis}` yet",
                split.span,
                help=f"what can be cut today: {', '.join(LOWERED_AXES)}",
            )
            return found
        for target, nodes in named:
            can = [node for node in nodes if split.axis in axes_of(self.graph, node)]
            can = [] if _goes_home_as_made(nodes) else can
            if nodes and not can and target.name not in self.vague:
                self.faults.add(
                    "axis",
                    f"`{target.name}` cannot be cut by {split.axis}",
                    target.span,
                    help=self._why_whole(split, nodes),
                )
            for node in nodes:
                if node.kind == "put_sums" and split.axis is Axis.EXPERT_GROUP:
                    self.faults.add(
                        "axis",
                        f"`{target.name}` cannot be cut by expert_group: a sum over a rank's experts needs them all",
                        target.span,
                        help=f"cut it by columns, or leave out `local_reduce {target.name}`",
                    )
                    return {}
            for node in can:
                if why := uneven(self.graph, node, split.axis, count, self.ep):
                    self.faults.add("uneven-chunks", why.message, split.span, help=why.help)
                    return {}
                if split.axis is Axis.EXPERT_GROUP:
                    experts = getattr(node.attrs, "experts", 0) or self._experts_of(node)
                    # Where ep does not divide the experts, a fault of its own, nobody knows how many a rank will have.
                    local = experts if experts % self.ep else experts // self.ep
                    if count > local:
                        self.faults.add(
                            "chunks-over-experts",
                            f"cannot make {count} groups: there are {experts} experts"
                            if experts % self.ep
                            else f"cannot make {count} groups of {local} experts: there are {experts} experts on"
                            f" {self.ep} ranks",
                            split.span,
                            help=f"use at most {local}"
                            + (f": -D {split.count.name}={local}" if isinstance(split.count, Name) else ""),
                        )
                        return {}
                found[node.name] = (split.axis, count)
        return found

    def _chunks(self, split: Split) -> int | None:
        """The number of chunks; `ep` is that of the cluster, where the file has no such number of its own."""
        if isinstance(split.count, Name) and split.count.name == "ep" and "ep" not in self.numbers.values:
            return self.ep
        return self.numbers.whole(split.count, "the number of chunks")

    def _why_whole(self, split: Split, nodes: list[Node]) -> str | None:
        """Why ops cannot be cut along an axis."""
        if _goes_home_as_made(nodes):
            return "the product that makes its rows stores them at home (`direct`), in one piece: `put` can be cut"
        if any(one_sided_rows(self.graph, self.graph.types[v].shape[0].symbol) for n in nodes for v in n.outs):
            return "rows that travel one-sided lie by expert: between dispatch and combine cut by expert_group"
        if split.axis is Axis.EXPERT_GROUP:
            return "only what lies between dispatch and combine has expert groups"
        if split.axis is Axis.PEER:
            return "by peer can be cut what sends rows, and up to the first gap what runs on them as they come"
        if split.axis is Axis.COLUMNS:
            return "by columns can be cut what brings rows home, and the product that makes them"
        if any(node.kind == "call" for node in nodes):
            return "a module may look at all tokens at once: it runs whole"
        return None

    def _experts_of(self, node: Node) -> int:
        dispatch = self.graph.types[node.outs[0]].shape[0].symbol[len("rows(") : -1]
        experts = getattr(self.graph.node[dispatch].attrs, "experts", 0)
        assert isinstance(experts, int)
        return experts

    def _use(self, use: Use) -> dict[str, Choice]:
        found: dict[str, Choice] = {}
        conditions = [self._condition(when) for when in use.whens]
        for target in use.targets:
            nodes = self._nodes(target)
            matched = [n for n in nodes if all(name.name in impls_of(n.kind) for name in use.impls)]
            known = {impl for node in nodes if len(impls_of(node.kind)) > 1 for impl in impls_of(node.kind)}
            unknown = [name for name in use.impls if not any(name.name in impls_of(node.kind) for node in nodes)]
            if target.name in self.vague:
                known |= {impl.name for impl in IMPLS}
                unknown = [name for name in unknown if name.name not in known]
            for name in unknown if nodes or target.name in self.vague else ():
                self.faults.add(
                    "unknown-implementation",
                    f"`{name.name}` is no implementation of `{target.name}`",
                    name.span,
                    help=did_you_mean(name.name, known)
                    if known
                    else "it has one implementation only: there is nothing to choose",
                )
            if nodes and not matched and not unknown and target.name not in self.vague:
                names = " and ".join(f"`{name.name}`" for name in use.impls)
                self.faults.add("unknown-implementation", f"no op of `{target.name}` has {names}", use.impls[-1].span)
            self._check_metrics(use, target, matched)
            for name in use.impls:
                for node in matched if name.name == "persistent" else ():
                    if why := why_not_persistent(self.graph, node):
                        self.faults.add(
                            "cannot-be-persistent",
                            f"`persistent` cannot run `{target.name}`: {why}",
                            name.span,
                            help="use `grouped`",
                        )
            if None in conditions:
                continue
            cases = tuple((n.name, c) for n, c in zip(use.impls, conditions, strict=False) if c)
            for node in matched:
                found[node.name] = Choice(use.impls[-1].name, cases)
        return found

    def _check_metrics(self, use: Use, target: Target, nodes: list[Node]) -> None:
        """Of rows at the experts only what runs there can ask."""
        at_home = [n for n in nodes if n.info.role is not Role.TRANSFER and not at_experts(self.graph, n)]
        for when in use.whens:
            if at_home and when.metric in (Metric.ROWS, Metric.MEAN_ROWS, Metric.MAX_ROWS):
                self.faults.add(
                    "metric-of-tokens",
                    f"`{target.name}` {'also ' if len(at_home) < len(nodes) else ''}runs on tokens, where nothing has"
                    f" `{when.metric}`",
                    when.span,
                    help="compare `tokens` or `device`",
                )

    def _condition(self, when: When) -> Condition | None:
        metric, op = when.metric, when.op
        if metric not in set(Metric):
            self.faults.add(
                "unknown-metric",
                f"`{metric}` is nothing that a choice can look at",
                when.span,
                help=did_you_mean(metric, Metric),
            )
            return None
        if metric == Metric.DEVICE:
            if not isinstance(when.value, Name) or when.value.name not in ("cuda", "cpu") or op not in ("==", "!="):
                self.faults.add("bad-condition", "`device` is compared with == to `cuda` or `cpu`", when.span)
                return None
            return Condition(Metric.DEVICE, op, when.value.name)
        value = self.numbers.whole(when.value, "the threshold", least=0)
        return None if value is None else Condition(Metric(metric), op, value)

    def _reserve(self, reserve: Reserve) -> Partition | None:
        sms = self.numbers.whole(reserve.sms, "the number of SMs")
        nodes: list[str] = []
        for target in reserve.targets:
            if self._nodes(target) and not self._transfers(target) and target.name not in self.vague:
                self.faults.add(
                    "reserve",
                    f"`{target.name}` transfers nothing: SMs are reserved for transfers",
                    target.span,
                    help="GEMMs get the SMs that are left",
                )
            nodes += [node.name for node in self._transfers(target)]
        return Partition(sms, tuple(nodes), reserve.span) if sms is not None else None

    def _check_partition(self, partition: Partition, lanes: dict[str, str]) -> None:
        """What shares SMs must take turns, and so be on one lane."""
        found = dict.fromkeys(lanes.get(name, "") for name in partition.nodes)
        if len(found) > 1:
            origins = dict.fromkeys(self.graph.node[name].origin for name in partition.nodes)
            self.faults.add(
                "reserve",
                f"{' and '.join(f'`{o}`' for o in origins)} share {partition.sms} SMs, so they take turns on one lane,"
                " but a `run .. on` puts them on two",
                partition.span,
                help="run all of them on that lane, or write a `reserve` for each",
            )


def _goes_home_as_made(nodes: list[Node]) -> bool:
    """Whether a product stores at home what it makes."""
    return any(node.kind == "expert_gemm_put" for node in nodes)
