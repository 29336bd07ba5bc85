"""A Mixture-of-Experts layer written by hand, three ways, to hold compiled programs against.

`AllToAll`     expert parallel, tokens travel: the parts of an emitted serial program, one after the other
`AllGather`    expert parallel, all tokens go to all ranks: all-gather, experts, reduce-scatter
`Replicated`   no expert parallelism: every rank holds all experts, and nothing travels

All three take x[tokens, hidden] of this rank and return y[tokens, hidden]; plain torch, one stream, no epsc. NCCL with
bf16 or gloo with fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from epsc.bench.shape import Shape

# Newer names first; the older ones are what the same functions were called before.
grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


# --- parts ------------------------------------------------------------------------------------------------------------


def route(x: Tensor, weight: Tensor, choice_bias: Tensor | None, shape: Shape) -> tuple[Tensor, Tensor]:
    """x[tokens, hidden] -> experts int64[tokens, k], weights fp32[tokens, k]. Scores are fp32 throughout."""
    if x.is_cuda and x.dtype == weight.dtype == torch.bfloat16:
        logits = torch.mm(x, weight.T, out_dtype=torch.float32)
    else:
        logits = x.float() @ weight.float().T
    scores = logits.softmax(-1) if shape.score == "softmax" else logits.sigmoid()
    choice = scores if choice_bias is None else scores + choice_bias.float()
    if shape.groups > 1:
        grouped = choice.unflatten(-1, (shape.groups, -1))
        best = grouped.amax(-1) if shape.group_by == "max" else grouped.topk(2, dim=-1).values.sum(-1)
        kept = best.topk(shape.top_groups, dim=-1).indices
        dropped = torch.ones_like(best, dtype=torch.bool).scatter_(1, kept, False)
        choice = grouped.masked_fill(dropped.unsqueeze(-1), -torch.inf).flatten(1)
    experts = choice.topk(shape.top_k, dim=-1).indices
    weights = scores.gather(1, experts)
    if shape.renorm:
        weights = weights / weights.sum(-1, keepdim=True)
    return experts, weights * shape.scale


def sort_by_expert(experts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """experts[tokens, k] -> order[tokens*k] (token copies by expert, then by token) and rows per expert[count].

    16 bits sort in a quarter of the passes of 64; counting by search in what is sorted needs no atomics, and unlike
    torch.bincount it does not stop the host.
    """
    keys, order = experts.flatten().to(torch.int16).sort(stable=True)
    ends = torch.searchsorted(keys, torch.arange(count, dtype=torch.int16, device=keys.device), right=True)
    return order, ends.diff(prepend=ends.new_zeros(1))


def experts_mlp(rows: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor) -> Tensor:
    """rows[n, hidden], by expert; ends int32[experts] -> [n, hidden]. down(silu(gate) * up) of each row's expert."""
    if not len(rows):
        return rows
    gate, up = grouped_mm(rows, gate_up.mT, offs=ends).chunk(2, dim=-1)
    return grouped_mm(F.silu(gate) * up, down.mT, offs=ends)


def shared_mlp(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    gate, up = F.linear(x, weights["mlp.gate_up"]).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, weights["mlp.down"])


def _place(order: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Where each token copy lies among rows in `order`, and its weight: 0 for copies that are not among them."""
    place = torch.zeros(weights.shape, dtype=order.dtype, device=order.device)
    place.view(-1).scatter_(0, order, torch.arange(len(order), device=order.device))
    if len(order) < weights.numel():
        present = torch.zeros_like(weights)
        present.view(-1).index_copy_(0, order, weights.view(-1)[order])
        weights = present
    return place, weights


def sum_by_bag(rows: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """Gather, weigh and sum in one kernel."""
    place, weights = _place(order, weights)
    return F.embedding_bag(place, rows, per_sample_weights=weights.to(rows.dtype), mode="sum")


def sum_by_gather(rows: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """Gather into token order, then one small product per token."""
    place, weights = _place(order, weights)
    copies = rows.index_select(0, place.flatten()).view(*weights.shape, rows.shape[1])
    return torch.bmm(weights.to(rows.dtype).unsqueeze(1), copies).squeeze(1)


def sum_by_add(rows: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """Weigh, then add each row to its token, with atomics."""
    tokens, k = weights.shape
    weighted = rows * weights.flatten()[order].to(rows.dtype).unsqueeze(1)
    return rows.new_zeros(tokens, rows.shape[1]).index_add_(0, order // k, weighted)


Sum = Callable[[Tensor, Tensor, Tensor], Tensor]
"""rows[n, hidden] in `order`[n] of token copies, weights fp32[tokens, k] -> [tokens, hidden]: the copies of each token,
weighted and summed. A benchmark takes whichever is fastest where it runs."""
SUMS: dict[str, Sum] = {"bag": sum_by_bag, "gather": sum_by_gather, "add": sum_by_add}


# --- layers -----------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """What the three have in common. `weights` are kept as they are, so layers can share them."""

    sharded = True

    def __init__(
        self,
        shape: Shape,
        weights: Mapping[str, Tensor],
        group: dist.ProcessGroup | None = None,
        sum_by: str = "bag",
    ) -> None:
        """`weights`: by name; the sharded ones with this rank's experts only, where `sharded`."""
        super().__init__()
        self.shape, self.group, self.weights, self.sum_by = shape, group, dict(weights), SUMS[sum_by]
        self.ep = dist.get_world_size(group) if dist.is_initialized() else 1
        self.rank = dist.get_rank(group) if dist.is_initialized() else 0
        self.local = shape.experts // self.ep if self.sharded else shape.experts
        if len(self.weights["gate_up"]) != self.local:
            raise ValueError(f"{type(self).__name__} keeps {self.local} experts, not {len(self.weights['gate_up'])}")

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return route(x, self.weights["r.weight"], self.weights.get("r.choice_bias"), self.shape)

    def with_shared(self, x: Tensor, routed: Tensor) -> Tensor:
        return routed.add_(shared_mlp(x, self.weights)) if self.shape.shared else routed

    def experts(self, rows: Tensor, counts: Tensor) -> Tensor:
        return experts_mlp(rows, self.weights["gate_up"], self.weights["down"], counts.cumsum(0).to(torch.int32))


class AllToAll(Layer):
    """Each row goes to the rank of its expert and comes home. Every rank may have another number of tokens."""

    def __init__(
        self,
        shape: Shape,
        weights: Mapping[str, Tensor],
        group: dist.ProcessGroup | None = None,
        sum_by: str = "bag",
    ) -> None:
        super().__init__(shape, weights, group, sum_by)
        cuda = self.weights["gate_up"].is_cuda
        self.pinned = torch.empty(2, self.ep, dtype=torch.int64, pin_memory=cuda)
        self.copied = torch.cuda.Event() if cuda else None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        experts, weights = self.route(x)
        order, leaving = sort_by_expert(experts, self.shape.experts)
        arriving = torch.empty_like(leaving)
        self.all_to_all(arriving, leaving)
        self.pinned.copy_(torch.stack((leaving, arriving)).view(2, self.ep, self.local).sum(-1), non_blocking=True)
        if self.copied:
            self.copied.record()
        # Work that needs no sizes goes out before the host waits for them.
        rows = x.index_select(0, order // self.shape.top_k)
        shared = shared_mlp(x, self.weights) if self.shape.shared else None
        if self.copied:
            self.copied.synchronize()
        goes, comes = self.pinned.tolist()

        received = x.new_empty(sum(comes), self.shape.hidden)
        self.all_to_all(received, rows, comes, goes)
        by_expert, by_rank = self.regroup(arriving.view(self.ep, self.local), len(received))
        made = self.experts(received.index_select(0, by_expert), arriving.view(self.ep, self.local).sum(0))
        home = torch.empty_like(rows)
        self.all_to_all(home, made.index_select(0, by_rank), goes, comes)
        routed = self.sum_by(home, order, weights)
        return routed if shared is None else routed.add_(shared)

    def all_to_all(
        self, out: Tensor, rows: Tensor, comes: list[int] | None = None, goes: list[int] | None = None
    ) -> None:
        if dist.is_initialized():
            dist.all_to_all_single(out, rows, comes, goes, group=self.group)
        else:
            out.copy_(rows)

    def regroup(self, arriving: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """arriving[rank, expert] -> for each row by (expert, rank) where it lies by (rank, expert), and the inverse."""
        counts = arriving.T.flatten()
        starts_there = (arriving.flatten().cumsum(0) - arriving.flatten()).view_as(arriving).T.flatten()
        shift = starts_there - (counts.cumsum(0) - counts)
        at = torch.arange(rows, device=arriving.device)
        by_expert = at + shift.repeat_interleave(counts, output_size=rows)
        return by_expert, torch.empty_like(by_expert).scatter_(0, by_expert, at)


class AllGather(Layer):
    """All ranks see all tokens, run their own experts on them, and sum. Every rank must have as many tokens."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        experts, weights = self.route(x)
        everyone, experts, weights = self.gather(x), self.gather(experts.to(torch.int16)), self.gather(weights)
        order, counts = sort_by_expert(experts, self.shape.experts)
        first = self.rank * self.local
        before = torch.stack((counts[:first].sum(), counts[: first + self.local].sum())).tolist()
        mine = order[slice(*before)]
        rows = everyone.index_select(0, mine // self.shape.top_k)
        made = self.experts(rows, counts[first : first + self.local])
        if len(made):
            partial = self.sum_by(made, mine, weights)
        else:
            partial = torch.zeros_like(everyone)
        return self.with_shared(x, self.scatter(partial))

    def gather(self, x: Tensor) -> Tensor:
        if not dist.is_initialized():
            return x
        out = x.new_empty(self.ep * len(x), *x.shape[1:])
        if x.dtype == torch.int16:  # not a type of NCCL's
            all_gather(out.view(torch.uint8), x.view(torch.uint8), group=self.group)
        else:
            all_gather(out, x, group=self.group)
        return out

    def scatter(self, partial: Tensor) -> Tensor:
        if not dist.is_initialized():
            return partial
        out = partial.new_empty(len(partial) // self.ep, partial.shape[1])
        reduce_scatter(out, partial, group=self.group)
        return out


class Replicated(Layer):
    """Every rank holds every expert: nothing travels, and the host never waits."""

    sharded = False

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        experts, weights = self.route(x)
        order, counts = sort_by_expert(experts, self.shape.experts)
        made = self.experts(x.index_select(0, order // self.shape.top_k), counts)
        return self.with_shared(x, self.sum_by(made, order, weights))

    def capture(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The same as a CUDA graph for inputs of this shape; what it returns is overwritten by its next call."""
        held = x.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self(held)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Threads of NCCL look at events meanwhile, which only a capture of this thread alone allows.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made: Tensor = self(held)

        def replay(x: Tensor) -> Tensor:
            held.copy_(x)
            graph.replay()
            return made

        return replay
