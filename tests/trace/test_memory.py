"""What tracing a block takes besides the block: a part of its memory, as a process of its own measures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys, threading, time
import torch
import epsc
from tests.trace import styles

torch.set_num_threads(1)
kind = getattr(styles, sys.argv[1])
epsc.trace(kind().eval(), torch.randn(1, 5, styles.HIDDEN))  # what is imported, and what torch keeps, comes first

styles.HIDDEN, styles.INNER, styles.EXPERTS = 512, int(sys.argv[3]), 16
block = kind().to(getattr(torch, sys.argv[2])).eval()
held = sum(p.numel() * p.element_size() for p in block.parameters()) / 2**20


def own() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


before, most, done = own(), 0.0, False


def watch() -> None:
    global most
    while not done:
        most = max(most, own() - before)
        time.sleep(0.0005)


thread = threading.Thread(target=watch)
thread.start()
layer = epsc.trace(block, torch.randn(1, 5, 512, dtype=next(block.parameters()).dtype))
done = True
thread.join()
print(held, most)
"""


EXACT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""So that what is freed is given back, and what torch keeps for the next product is not counted."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize(
    "kind, dtype, inner",
    [pytest.param("Grouped", "float32", 1024, marks=pytest.mark.slow), ("IndexAdd", "bfloat16", 2048)],
)
def test_tracing_takes_a_fraction_of_the_block(kind: str, dtype: str, inner: int) -> None:
    command = [sys.executable, "-c", MEASURE, kind, dtype, str(inner)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | EXACT)
    assert done.returncode == 0, done.stderr
    held, most = map(float, done.stdout.split())
    assert held > 90
    assert 1 < most < 0.6 * held
