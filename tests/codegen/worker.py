"""One rank of a test: runs emitted programs on several numbers of tokens and keeps what came out.

torchrun ... worker.py OUT TOKENS:TOKENS... PROGRAM...   (TOKENS as for --tokens)
"""

import importlib.util
import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist


def main() -> None:
    out, loads, *paths = sys.argv[1:]
    if "RANK" in os.environ:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = int(os.environ.get("RANK", "0"))
    for path in map(Path, paths):
        run(path, rank, loads.split(":"), Path(out))
    if dist.is_initialized():
        dist.destroy_process_group()


def run(path: Path, rank: int, loads: list[str], out: Path) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    program = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = program
    spec.loader.exec_module(program)
    layer_class = next(v for v in vars(program).values() if getattr(v, "__module__", "") == path.stem and is_layer(v))
    layer = layer_class(device="cpu", dtype=torch.float32)
    program.fill(layer, program.source(layer, SimpleNamespace(weights=None, seed=0)))
    for load in loads:
        said = [int(n) for n in load.split(",")]
        (x,) = program.inputs(layer, said[rank % len(said)], 0)
        # Rows with a stride: nobody says that a caller's rows are contiguous.
        wide = torch.full((len(x), 2 * x.shape[1]), torch.nan)
        wide[:, ::2] = x
        layer.run.poison = True
        torch.save(layer(wide[:, ::2]), out / f"{path.stem}.{load}.{rank}.pt")


def is_layer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, torch.nn.Module)


if __name__ == "__main__":
    main()
