"""What tracing a block takes besides the block: a part of its memory, as a process of its own measures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WATCH = """
import sys, threading, time
import torch
import epsc
from tests.trace import styles
from tests.trace.work import Tower

torch.set_num_threads(1)


def own() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


def watch() -> None:
    global most
    while not done:
        most = max(most, own() - before)
        time.sleep(0.0005)


thread = threading.Thread(target=watch)
before, most, done = 0.0, 0.0, False
"""
TRACE = """
kind = getattr(styles, sys.argv[1])
epsc.trace(kind().eval(), torch.randn(1, 5, styles.HIDDEN))  # what is imported, and what torch keeps, comes first

styles.HIDDEN, styles.INNER, styles.EXPERTS = 512, int(sys.argv[3]), 16
block = kind().to(getattr(torch, sys.argv[2])).eval()
held = sum(p.numel() * p.element_size() for p in block.parameters()) / 2**20

before = own()
thread.start()
layer = epsc.trace(block, torch.randn(1, 5, 512, dtype=next(block.parameters()).dtype))
done = True
thread.join()
print(held, most)
"""
MODEL = """
from safetensors.torch import save_file

epsc.trace(styles.Grouped().eval(), torch.randn(1, 5, styles.HIDDEN))
styles.HIDDEN, styles.INNER, styles.EXPERTS = 512, 1024, 4
kinds = [styles.Grouped] * 5
with torch.device("meta"):
    empty = Tower(kinds).eval()
state = {name: torch.zeros(tensor.shape) for name, tensor in empty.state_dict().items()}
held = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / 2**20
save_file(state, sys.argv[1] + "/model.safetensors")
del state
before = own()
thread.start()
model = epsc.compile_model(empty, weights=sys.argv[1])
done = True
thread.join()
assert not any(parameter.is_meta for parameter in model.parameters())
print(held, most)
"""


EXACT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""So that what is freed is given back, and what torch keeps for the next product is not counted."""


def measured(code: str, *arguments: str) -> tuple[float, float]:
    """MiB that a model has, and the most that came besides what was there."""
    command = [sys.executable, "-c", WATCH + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | EXACT)
    assert done.returncode == 0, done.stderr
    held, most = map(float, done.stdout.split())
    return held, most


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize(
    "kind, dtype, inner",
    [pytest.param("Grouped", "float32", 1024, marks=pytest.mark.slow), ("IndexAdd", "bfloat16", 2048)],
)
def test_tracing_takes_a_fraction_of_the_block(kind: str, dtype: str, inner: int) -> None:
    held, most = measured(TRACE, kind, dtype, str(inner))
    assert held > 90
    assert 1 < most < 0.6 * held


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it")
def test_a_model_that_is_read_from_a_file_never_has_a_second_copy_of_more_than_one_layer(tmp_path: Path) -> None:
    held, most = measured(MODEL, str(tmp_path))
    layer = held / 5
    assert held > 110
    assert held <= most + 1
    assert most < held + 1.2 * layer


def test_no_two_matrices_of_a_twin_are_alike() -> None:
    """Else a block could be read with one in the place of another, and nobody would see it."""
    torch = pytest.importorskip("torch")
    from epsc.grammar.trace.twin import twin_of

    block = torch.nn.ParameterDict(
        {
            **{name: torch.empty(4, 16, 16) for name in ("gate", "up", "down")},
            **{name: torch.empty(16, 16) for name in ("router", "shared")},
        }
    )
    made = twin_of(block, torch.float32, torch.device("cpu"))
    stacks = [made[name] for name in ("gate", "up", "down")]
    rows = [
        matrix[row] for matrix in (*(m for stack in stacks for m in stack), made.router, made.shared) for row in (0, 9)
    ]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows) == 28
