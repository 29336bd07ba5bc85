"""Ranks as they are started: groups within a world, several machines, and more ranks than one torchrun starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from epsc import driver
from epsc.bench.programs import compile_all
from epsc.commands.options import fits, here
from epsc.ir.errors import EpsError
from epsc.ir.source import Source
from tests.programs.ranks import Job, Ranks

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT = 1e-5
MIXTRAL = EXAMPLES / "mixtral_8x7b.eps"


def small(ep: int) -> driver.Layer:
    return driver.understand(driver.read(MIXTRAL), driver.Options({"ep": str(ep)}, preset="small"))


@pytest.mark.distributed
@pytest.mark.parametrize("schedule", ["serial", "eps", "one_sided"])
def test_groups_within_a_world(schedule: str, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    """Two groups of two ranks, as with data parallelism over replicas: neither waits for the other."""
    for tokens in ((8, 8, 8, 8), (0, 17, 3, 0)):
        results = ranks_of(4).run(prepare(small(2), schedule, tokens, within=2))
        assert max(result.error for result in results) < LIMIT


@pytest.mark.distributed
def test_one_sided_on_several_machines_is_refused(
    tmp_path: Path, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    """By every rank, when the layer is made, before memory is taken or a rank waits for another."""
    job = prepare(small(4), "one_sided", (8, 8, 8, 8))
    text = Path(job.program).read_text()
    elsewhere = text.replace("platform.node()", "f'host{dist.get_rank() // 2}'")
    assert elsewhere != text
    path = tmp_path / "elsewhere.py"
    path.write_text(elsewhere)
    with pytest.raises(AssertionError) as error:
        ranks_of(4).run(Job(str(path), job.graph, job.tokens))
    assert str(error.value).count("here are 2 (ranks 0, 1 on host0; 2, 3 on host1)") == 4


@pytest.mark.distributed
@pytest.mark.timeout(150)
def test_two_torchruns_are_one_world(tmp_path: Path) -> None:
    """As on two machines of two ranks each: torchrun --nnodes 2, once on each."""
    path = tmp_path / "program.py"
    path.write_text(driver.write(driver.plan(small(4), "eps")).text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for node in (0, 1):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
        command += ["--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", str(port)]
        command += [str(path), "--check", "--tokens", "8,0,3,20", "--dtype", "fp32", "--timeout", "60"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        (out, told), (other, told_other) = (each.communicate(timeout=120) for each in started)
    finally:
        for each in started:
            each.kill()
    assert [each.returncode for each in started] == [0, 0], told + told_other
    assert "4 ranks on cpu" in out and "PASS" in out and not other


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_eight_ranks_by_epsc_run() -> None:
    command = [
        sys.executable,
        "-m",
        "epsc",
        "run",
        str(MIXTRAL),
        "--preset",
        "small",
        "--nproc",
        "8",
        "-s",
        "one_sided",
    ]
    done = subprocess.run(
        [*command, "--check", "--tokens", "5"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "8 ranks on cpu" in done.stdout and "PASS" in done.stdout


def test_this_machine_is_one_node() -> None:
    """Whatever cluster a file speaks of: what is started here is not on its nodes."""
    text = MIXTRAL.read_text().replace("device = h200  ep = 2", "device = h100  ep = 8  nodes = 8")
    source = Source("m.eps", text)
    given = {"defines": ("width=64",), "preset": None, "layer": None, "cluster": None, "pipeline": "", "profile": None}
    assert here(source, given, 4) == ("ep=4", "nodes=1")
    assert fits(source, given, 4) and not fits(source, given, 3)
    assert here(source, {**given, "defines": ("nodes=2",)}, 4) == ("ep=4",)


def test_ranks_that_share_an_expert_are_counted() -> None:
    """`ep` is what is left of the ranks: 2 of them share each expert of FSMoE's layer."""
    source = driver.read(EXAMPLES / "papers" / "fsmoe.eps")
    given = {"defines": (), "preset": "small", "layer": None, "cluster": None, "pipeline": "", "profile": None}
    assert here(source, given, 4) == ("ep=2", "nodes=1")
    assert here(source, {**given, "defines": ("etp=1",)}, 4) == ("ep=4", "nodes=1")
    assert fits(source, given, 4) and fits(source, given, 2)
    with pytest.raises(EpsError, match="3 ranks are no groups of etp = 2") as error:
        here(source, given, 3)
    assert error.value.diagnostics[0].help == "--nproc 4, or -D etp=1"
    with pytest.raises(EpsError, match="each expert on one rank, and the file says etp = 2"):
        compile_all(source, driver.Options(preset="small"), None, [2], Path(), lambda _name, error: None)
