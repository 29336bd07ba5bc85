"""One rank of `test_interpreter.py`, started by torchrun: programs on CUDA against the interpreter, in fp32, there too.

Prints a line for each program and load on rank 0: its largest relative error (Frobenius) over all ranks.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from epsc.interpret import interpret
from epsc.interpret.weights import random_inputs, random_weights
from epsc.ir.graph import Graph
from tests.programs.ranks import layer_class, load_program


def main() -> None:
    folder, *loads = sys.argv[1:]
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl")
    rank = dist.get_rank()
    graph = Graph.parse((Path(folder) / "graph.txt").read_text())
    # The same generator on every rank: each has all experts for the oracle, and gives the program its own.
    weights = random_weights(graph, 3, torch.bfloat16, device=str(device))
    exact = {name: weight.float() for name, weight in weights.items()}
    for path in sorted(Path(folder).glob("*.py")):
        layer = layer_class(load_program(str(path)))(device=device, dtype=torch.bfloat16)
        layer.load(weights)
        layer.run.poison = True
        for load in loads:
            # Ranks differ: in what they have, and in how much of it.
            tokens = int(load) - 13 * rank
            ((name, x),) = random_inputs(graph, tokens, 100 + rank, torch.bfloat16, device=str(device)).items()
            got = layer(x).float()
            (expected,) = interpret(graph, {name: x.float()}, exact)
            error = (got - expected).norm() / expected.norm()
            worst = torch.nan_to_num(error, nan=1e9).cpu()
            dist.all_reduce(worst, dist.ReduceOp.MAX)
            if rank == 0:
                print(f"{path.stem} tokens {load} error {worst.item():.3e}", flush=True)
        del layer
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
