"""The hand-written layers that benchmarks compare with must be right, or beating them means nothing."""

import socket
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from epsc.bench.handwritten import SUMS, AllGather, AllToAll, Layer, Replicated
from epsc.bench.reference import clear_tokens, error, reference
from epsc.bench.shape import Shape
from epsc.bench.weights import make_weights

V2 = Shape("v2", hidden=32, width=16, experts=16, top_k=4, shared=24, groups=8, top_groups=3, scale=16.0)
V3 = replace(
    V2, name="v3", score="sigmoid", choice_bias=True, groups=4, top_groups=2, group_by="top2", renorm=True, scale=2.5
)
MIXTRAL = Shape("mixtral", hidden=32, width=48, experts=4, top_k=2, renorm=True)
CPU = torch.device("cpu")


def naive(shape: Shape, x: torch.Tensor) -> torch.Tensor:
    """Token by token, expert by expert, in fp64."""
    weights = {n: w.double() for n, w in make_weights(shape.weights, range(shape.experts), torch.float32, CPU).items()}
    out = torch.zeros_like(x, dtype=torch.float64)

    def mlp(v: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = (gate_up @ v).chunk(2)
        return down @ (gate * torch.sigmoid(gate) * up)

    for t, v in enumerate(x.double()):
        logits = weights["r.weight"] @ v
        scores = logits.softmax(0) if shape.score == "softmax" else logits.sigmoid()
        choice = (scores + weights["r.choice_bias"] if shape.choice_bias else scores).tolist()
        size = shape.experts // shape.groups
        of_group = [sorted(choice[g * size : (g + 1) * size], reverse=True) for g in range(shape.groups)]
        best = [sum(values[: 1 if shape.group_by == "max" else 2]) for values in of_group]
        kept = sorted(range(shape.groups), key=lambda g: -best[g])[: shape.top_groups]
        allowed = [e for e in range(shape.experts) if e // size in kept]
        chosen = sorted(allowed, key=lambda e: -choice[e])[: shape.top_k]
        total = sum(scores[e] for e in chosen) if shape.renorm else 1.0
        for e in chosen:
            out[t] += scores[e] / total * shape.scale * mlp(v, weights["gate_up"][e], weights["down"][e])
        if shape.shared:
            out[t] += mlp(v, weights["mlp.gate_up"], weights["mlp.down"])
    return out


def inputs(shape: Shape, rank: int, tokens: int) -> torch.Tensor:
    return torch.randn(tokens, shape.hidden, generator=torch.Generator().manual_seed(7 + rank))


def layer(kind: type[Layer], shape: Shape, rank: int, world: int, sum_by: str = "bag") -> Layer:
    local = shape.experts // world
    mine = range(rank * local, (rank + 1) * local) if kind.sharded else range(shape.experts)
    return kind(shape, make_weights(shape.weights, mine, torch.float32, CPU), sum_by=sum_by)


@pytest.mark.parametrize("shape", [V2, V3, MIXTRAL], ids=lambda s: s.name)
def test_reference_is_the_layer(shape: Shape) -> None:
    x = inputs(shape, 0, 21)
    weights = make_weights(shape.weights, range(shape.experts), torch.float32, CPU)

    def raw(name: str, expert: int | None = None) -> torch.Tensor:
        return weights[name] if expert is None else weights[name][expert]

    y, clear = reference(shape, x, raw), clear_tokens(shape.router, x, raw)
    assert clear.sum() > 18
    assert error(y[clear], naive(shape, x)[clear]) < 1e-5


@pytest.mark.parametrize("sum_by", SUMS)
@pytest.mark.parametrize("kind", [AllToAll, AllGather, Replicated])
def test_one_rank(kind: type[Layer], sum_by: str) -> None:
    x = inputs(V2, 0, 21)
    assert error(layer(kind, V2, 0, 1, sum_by)(x), naive(V2, x)) < 1e-5


def on_rank(rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        for shape in (V2, V3, MIXTRAL):
            for kind in (AllToAll, AllGather, Replicated):
                for sum_by in SUMS:
                    made = layer(kind, shape, rank, world, sum_by)
                    for tokens in (1, 17):
                        x = inputs(shape, rank, tokens)
                        assert error(made(x), naive(shape, x)) < 1e-5, (shape.name, kind, sum_by, tokens, rank)
        # Ranks need not have as many tokens as each other; none at all is a number of tokens, too.
        for tokens in (5 + 9 * rank, 6 * rank):
            x = inputs(V2, rank, tokens)
            assert error(layer(AllToAll, V2, rank, world)(x), naive(V2, x)) < 1e-5
    finally:
        dist.destroy_process_group()


@pytest.mark.distributed
def test_two_ranks() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(on_rank, args=(2, port), nprocs=2, start_method="spawn")


def test_nothing_finite_about_nan() -> None:
    wanted = torch.ones(3, 2)
    assert error(wanted.clone().fill_(torch.nan), wanted) == float("inf")
    assert error(torch.ones(2, 2), wanted) == float("inf")
