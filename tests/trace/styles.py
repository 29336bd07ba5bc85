"""Ways in which people write MoE blocks by hand. Each is called with [batch, sequence, hidden]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, INNER, EXPERTS, TOP_K = 32, 24, 4, 2


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(HIDDEN, INNER, bias=False)
        self.w3 = nn.Linear(HIDDEN, INNER, bias=False)
        self.w2 = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """A softmax router over a list of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x).float().softmax(-1)
        weights, ids = scores.topk(TOP_K, dim=-1)
        return ids, (weights / weights.sum(-1, keepdim=True)).to(x.dtype)


class IndexAdd(Block):
    """A Python loop over experts, `where`, `index_add_`."""

    def forward(self, hidden: Tensor) -> Tensor:
        batch, sequence, width = hidden.shape
        x = hidden.view(-1, width)
        ids, weights = self.choose(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            rows, slot = torch.where(ids == e)
            out.index_add_(0, rows, self.experts[e](x[rows]) * weights[rows, slot, None])
        return out.view(batch, sequence, width)


class SkipIfEmpty(Block):
    """The same, but experts without tokens are passed over; `out` is made by torch.zeros."""

    def forward(self, hidden: Tensor) -> Tensor:
        shape = hidden.shape
        x = hidden.reshape(-1, shape[-1])
        ids, weights = self.choose(x)
        out = torch.zeros(x.shape[0], x.shape[1], dtype=x.dtype, device=x.device)
        for e, expert in enumerate(self.experts):
            rows, slot = (ids == e).nonzero(as_tuple=True)
            if rows.numel() == 0:
                continue
            out[rows] += expert(x[rows]) * weights[rows, slot].unsqueeze(-1)
        return out.view(*shape)


class OneHot(Block):
    """Mixtral's: a permuted one-hot mask, `for e in expert_hit`."""

    def forward(self, hidden: Tensor) -> Tensor:
        batch, sequence, width = hidden.shape
        x = hidden.view(-1, width)
        ids, weights = self.choose(x)
        out = torch.zeros((batch * sequence, width), dtype=x.dtype, device=x.device)
        mask = F.one_hot(ids, num_classes=EXPERTS).permute(2, 1, 0)
        for e in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            slot, rows = torch.where(mask[e].squeeze(0))
            made = self.experts[e](x[None, rows].reshape(-1, width)) * weights[rows, slot, None]
            out.index_add_(0, rows, made.to(x.dtype))
        return out.reshape(batch, sequence, width)


class Masks(Block):
    """Boolean masks and item assignment, a column of choices at a time (llama.c, mistral-src)."""

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, hidden.shape[-1])
        ids, weights = self.choose(x)
        copies = x.repeat_interleave(TOP_K, dim=0)
        flat = ids.view(-1)
        made = torch.empty_like(copies)
        for e, expert in enumerate(self.experts):
            made[flat == e] = expert(copies[flat == e])
        made = (made.view(*weights.shape, -1) * weights.unsqueeze(-1)).sum(dim=1)
        return made.view(*hidden.shape)


class ExpertHit(Block):
    """`for e in ids.unique()`, with `.item()`."""

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.flatten(0, 1)
        ids, weights = self.choose(x)
        out = torch.zeros_like(x)
        for hit in ids.unique():
            e = int(hit.item())
            token, slot = torch.where(ids == e)
            out[token] = out[token] + weights[token, slot][:, None] * self.experts[e](x[token])
        return out.unflatten(0, hidden.shape[:2])


class Stacked(nn.Module):
    """Weights of all experts in one tensor, every expert on every token, by einsum and a dense gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(HIDDEN, EXPERTS))
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN))

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, hidden.size(-1))
        scores = (x @ self.gate).softmax(dim=-1, dtype=torch.float32)
        weights, ids = torch.topk(scores, TOP_K)
        dense = torch.zeros_like(scores).scatter_(1, ids, weights).to(x.dtype)
        h = F.gelu(torch.einsum("th,ehi->tei", x, self.up))
        out = torch.einsum("tei,eih,te->th", h, self.down, dense)
        return out.view(hidden.size(0), -1, hidden.size(-1))


class Grouped(nn.Module):
    """Weights of all experts in one tensor for each product, and a loop over experts (Hugging Face's)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.gate_up = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, hidden.shape[-1])
        weights, ids = self.gate(x).softmax(-1).topk(TOP_K, dim=-1)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            rows, slot = torch.where(ids == e)
            gate, up = F.linear(x[rows], self.gate_up[e]).chunk(2, dim=-1)
            out.index_add_(0, rows, F.linear(F.silu(gate) * up, self.down[e]) * weights[rows, slot, None])
        return out.view(hidden.shape)


class Sorted(Block):
    """argsort, and a slice for each expert (DeepSeek's inference code)."""

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, hidden.shape[-1])
        ids, weights = self.choose(x)
        order = ids.view(-1).argsort()
        counts = torch.bincount(ids.view(-1), minlength=EXPERTS).tolist()
        rows = x[order // TOP_K]
        parts, start = [], 0
        for e, count in enumerate(counts):
            if count == 0:
                continue
            parts.append(self.experts[e](rows[start : start + count]))
            start += count
        made = torch.cat(parts, dim=0)
        back = torch.empty_like(made)
        back[order] = made
        return (back.view(*ids.shape, -1) * weights.unsqueeze(-1)).sum(dim=1).view(hidden.shape)


class Named(nn.Module):
    """Experts in a ModuleDict, with biases and relu (Switch, NLLB)."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS)
        self.experts = nn.ModuleDict(
            {
                f"expert_{e}": nn.Sequential(nn.Linear(HIDDEN, INNER), nn.ReLU(), nn.Linear(INNER, HIDDEN))
                for e in range(EXPERTS)
            }
        )

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, hidden.shape[-1])
        weights, ids = self.router(x).sigmoid().topk(TOP_K, dim=-1)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            chosen = (ids == e).any(dim=-1)
            if not chosen.any():
                continue
            weight = (weights * (ids == e)).sum(dim=-1, keepdim=True)
            out[chosen] += weight[chosen] * self.experts[f"expert_{e}"](x[chosen])
        return out.view_as(hidden)


class Dense(Block):
    """All experts on all tokens, weighted by what the router gives them, mostly nothing; with a shared expert."""

    def __init__(self) -> None:
        super().__init__()
        self.always = Expert()
        self.always_gate = nn.Linear(HIDDEN, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, hidden.shape[-1])
        ids, weights = self.choose(x)
        gates = torch.zeros(len(x), EXPERTS, dtype=x.dtype, device=x.device)
        gates.scatter_(1, ids, weights)
        out = sum(gates[:, e : e + 1] * expert(x) for e, expert in enumerate(self.experts))
        return (out + torch.sigmoid(self.always_gate(x)) * self.always(x)).view_as(hidden)


class Biased(Block):
    """A router whose choice is steered by a bias in fp32 whatever the block's dtype, as in DeepSeek-V3."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Buffer(8 + 0.05 * torch.randn(EXPERTS))

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x.float(), self.gate.weight.float()).sigmoid()
        ids = (scores + self.bias).topk(TOP_K, dim=-1).indices
        weights = scores.gather(1, ids)
        return ids, (weights / weights.sum(-1, keepdim=True)).to(x.dtype)

    forward = IndexAdd.forward


STYLES: tuple[type[nn.Module], ...] = (
    IndexAdd,
    SkipIfEmpty,
    OneHot,
    Masks,
    ExpertHit,
    Stacked,
    Sorted,
    Named,
    Dense,
)


class Stack(nn.Module):
    """Experts in stacked weights behind a router of `CHOICES`, called with what the router decides."""

    CHOICES = EXPERTS

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, self.CHOICES, bias=False)
        self.experts = StackedExperts(self.CHOICES)

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, hidden.shape[-1])
        weights, ids = self.router(x).softmax(-1).topk(TOP_K, dim=-1)
        made: Tensor = self.experts(x, ids, weights)
        return made.view(hidden.shape)


class StackedExperts(nn.Module):
    """The first `EXPERTS` of those that a token chooses from; what is beyond them hands its tokens back (LongCat)."""

    def __init__(self, choices: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(choices, INNER, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))
        self.choices = choices

    def one(self, e: int, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.up[e])), self.down[e])

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in range(self.choices):
            rows, slot = torch.where(ids == e)
            made = self.one(e, x[rows]) if e < EXPERTS else x[rows]
            out.index_add_(0, rows, made * weights[rows, slot, None])
        return out


class Identities(Stack):
    """Of six that a token chooses from, two do nothing; the first weights have rows for them all the same."""

    CHOICES = EXPERTS + 2


class Normed(Stack):
    """A norm behind each expert, before its weight (Muse)."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = NormedExperts(EXPERTS)


class NormedExperts(StackedExperts):
    def __init__(self, choices: int) -> None:
        super().__init__(choices)
        self.norm = nn.LayerNorm(HIDDEN)

    def one(self, e: int, x: Tensor) -> Tensor:
        made: Tensor = self.norm(super().one(e, x))
        return made


class Full(nn.Module):
    """A capacity: what is beyond five tokens of an expert is dropped, and a mask says what is not (Switch)."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS)
        self.experts = MaskedExperts()

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, hidden.shape[-1])
        weights, ids = self.router(x).softmax(-1).topk(TOP_K, dim=-1)
        mask = F.one_hot(ids, EXPERTS)
        mask = mask * (mask.cumsum(0) <= 5)
        made: Tensor = self.experts(x, mask, weights)
        return made.view(hidden.shape)


class MaskedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, slot = torch.where(mask[:, :, e])
            out.index_add_(0, rows, expert(x[rows]) * weights[rows, slot, None])
        return out


class OnInput(nn.Module):
    """Weights multiply what goes to an expert; all experts run on all tokens, most of them on zeros (Llama 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN))

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.reshape(-1, hidden.shape[-1])
        logits, ids = self.router(x).topk(TOP_K, dim=-1)
        scores = torch.full((len(x), EXPERTS), -torch.inf, dtype=x.dtype, device=x.device)
        scores = scores.scatter(1, ids, logits).float().sigmoid().to(x.dtype)
        rows = x.unsqueeze(0) * scores.T.unsqueeze(-1)
        return torch.bmm(F.gelu(torch.bmm(rows, self.up)), self.down).sum(0).view(hidden.shape)
