"""`epsc bench` on CPU ranks: it measures, checks, and names what fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from epsc import driver
from epsc.bench.alone import alone
from epsc.bench.contender import Contender, check, load_program
from epsc.bench.layer import Given, Manifest
from epsc.bench.programs import Wanted, compile_all
from epsc.bench.ranks import Ranks
from epsc.bench.shape import Router
from epsc.bench.soak import soak
from epsc.bench.workloads import Workloads
from epsc.ir.errors import EpsError

ROOT = Path(__file__).parents[2]
V2 = ROOT / "examples/deepseek_v2.eps"


def compiled(folder: Path, *names: str, ep: int = 2, file: Path = V2) -> list[dict[str, Any]]:
    def refused(name: str, error: EpsError) -> None:
        raise error

    wanted = [Wanted.parse(name) for name in names]
    return compile_all(driver.read(file), driver.Options(preset="small"), wanted, [ep], folder, refused)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
        timeout=100,
    )


@pytest.mark.distributed
def test_measures_in_one_process_group(tmp_path: Path) -> None:
    out, file = tmp_path / "found.json", tmp_path / "v2.eps"
    file.write_text(f"{V2.read_text()}\nschedule put {{ use put for sent, back  dedup sent  local_reduce back }}\n")
    options = ["--preset", "small", "--nproc", "2", "-s", "serial", "-s", "eps:groups=1", "-s", "put", "--json", out]
    done = command("epsc", "bench", file, *options, "--workload", "hot-rank", "--tokens", "32")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    (cell,) = found["cells"]
    names = ["hand-a2a", "hand-gather", "hand-no-ep", "serial", "eps:groups=1", "put"]
    assert list(cell["contenders"]) == names
    assert cell["floor"]["ms"] > 0
    for name, c in cell["contenders"].items():
        assert 0 < c["p10"] <= c["median"] <= c["p90"] <= c["most"]
        assert 0 <= c["error"] < 1e-5
        assert (c["alone"] is None) == name.startswith("hand")
    assert all(cell["contenders"][name]["alone"]["transfer"] > 0 for name in names[3:])
    assert cell["rows"]["per_rank"] == [0, 128, 256]
    assert found["failed"] == []
    for text in ("hot-rank, 32 tokens per rank", "rows per rank 0 / 128 / 256", "eps:groups=1", "vs best"):
        assert text in done.stdout
    assert "OMP_NUM_THREADS" not in done.stderr


@pytest.mark.distributed
def test_who_fails_is_left_out_and_named(tmp_path: Path) -> None:
    """One program computes something else, one breaks its process, one is right."""
    compiled(tmp_path, "serial", "eps", "eps:groups=1")
    wrong, breaks = tmp_path / "deepseek_v2_eps_ep2.py", tmp_path / "deepseek_v2_eps_groups_1_ep2.py"
    text = wrong.read_text()
    assert text.count("        self.run.join()\n        return return_") == 1
    wrong.write_text(text.replace("        return return_\n", "        return return_ * 1.01\n"))
    text = breaks.read_text()
    assert text.count("        self.run.join()\n") == 1
    breaks.write_text(text.replace("        self.run.join()\n", "        os._exit(7)\n"))
    few = ["--only", "hand-no-ep", "serial", "eps", "eps:groups=1", "--tokens", "16", "--rounds", "2", "--runs", "1"]
    few += ["--workload", "burst"]
    done = command("benchmarks.run_all", tmp_path, "--ep", "2", "--out", tmp_path, *few)
    assert done.returncode == 3, done.stdout + done.stderr
    found = json.loads((tmp_path / "results-ep2.json").read_text())
    assert {f["name"] for f in found["failed"]} == {"eps", "eps:groups=1"}
    (cell,) = found["cells"]
    assert cell["sizes"] == [2, 2, 2, 16]
    assert list(cell["contenders"]) == ["hand-no-ep", "serial"]
    assert "FAILED: eps:groups=1, its process: ended with exit code" in done.stdout
    assert "FAILED: eps, burst, 16 tokens: its relative error is 1.00e-02" in done.stdout


class Right:
    """What a layer that doubles should return."""

    def result(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    def clear(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), dtype=torch.bool)


def test_soak_checks_every_forward() -> None:
    """One goes wrong at its third forward, one raises at its second; the others go on."""
    calls = dict.fromkeys(("wrong", "raises"), 0)

    def wrong(x: torch.Tensor) -> torch.Tensor:
        calls["wrong"] += 1
        return x * (3 if calls["wrong"] == 3 else 2)

    def raises(x: torch.Tensor) -> torch.Tensor:
        calls["raises"] += 1
        if calls["raises"] == 2:
            raise RuntimeError("stuck")
        return x * 2

    router, made = Router(4, 2), torch.Generator().manual_seed(1)
    weight = torch.randn(4, 16, generator=made) / 4
    workloads = Workloads(router, lambda name: weight, 0, 1, torch.float32)
    contenders = [Contender("right", Doubles()), Contender("wrong", wrong), Contender("raises", raises)]
    turns: list[str] = []
    ranks = Ranks(torch.device("cpu"))
    found, failed = soak(ranks, contenders, workloads, "zipf", [5, 9], 6, Right(), turns.append)
    assert calls == {"wrong": 3, "raises": 2}
    assert failed["wrong"].endswith("forward 2: error 5.00e-01")
    assert failed["raises"].endswith("RuntimeError: stuck")
    assert found["errors"]["right"] == 0
    assert turns.count("right") == found["forwards"] == 6


def test_steps_alone(tmp_path: Path) -> None:
    """Every step is counted once, as a transfer or as another; the program is left as it was."""
    (program,) = compiled(tmp_path, "eps", ep=1)
    ranks, manifest = Ranks(torch.device("cpu")), Manifest.read(tmp_path)
    given = Given(manifest, ranks, torch.float32)
    layer = load_program(tmp_path / program["file"], given.own, ranks.device, torch.float32)
    contender = Contender("eps", layer, transfers=frozenset(program["transfers"]))
    x = torch.randn(32, 64)
    y = contender(x)
    found = alone(ranks, contender, [x, x])
    assert min(found.transfer, found.compute, found.host) > 0
    assert layer.run.spans is None
    assert torch.equal(contender(x), y)
    seen: list[Any] = []
    layer.run.spans = seen
    contender(x)
    assert {step for _, step, _, _ in seen} >= set(program["transfers"])


class Doubles(torch.nn.Module):
    """A layer with faults to choose, and graphs that are none."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault, self.asked, self.kept = fault, list[int](), torch.zeros(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fault == "input":
            return x.mul_(2)
        if self.fault == "kept":
            return self.kept.copy_(x).mul_(2)
        y = torch.empty_like(x)
        y[: len(x) - (self.fault == "unwritten")] = (x * 2)[: len(x) - (self.fault == "unwritten")]
        return y

    def capture(self, x: torch.Tensor) -> Any:
        self.asked.append(len(x))
        return self

    def status(self) -> None:
        if self.fault == "status":
            raise RuntimeError("overflow")


@pytest.mark.parametrize("fault", ["", "input", "kept", "unwritten", "status"])
def test_checks_find(fault: str) -> None:
    x, other = torch.randn(4, 2), torch.randn(4, 2)
    contender = Contender("it", Doubles(fault))
    wanted, clear = x * 2, torch.ones(4, dtype=torch.bool)
    if fault in ("input", "kept", "status"):
        with pytest.raises(RuntimeError, match=r"input|next forward|overflow"):
            check(contender, x, other, wanted, clear)
    else:
        assert check(contender, x, other, wanted, clear) == (float("inf") if fault else 0)


def test_graphs_are_captured_once_for_each_load() -> None:
    layer = Doubles("kept")
    contender = Contender("it", layer, graph=True)
    contender.prepare([torch.zeros(4, 2), torch.ones(4, 2)])
    contender.prepare([torch.zeros(2, 2), torch.zeros(4, 2)])
    assert layer.asked == [4, 2]
    x = torch.randn(4, 2)
    # What a graph returned may be overwritten by its next run.
    assert check(contender, x, torch.randn(4, 2), x * 2, torch.ones(4, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["-s", "eps:experts=32"], 1, "another layer"),
        (["-s", "epz"], 1, "no schedule `epz`"),
        (["-s", "eps groups=2"], 1, "NAME:LET=NUMBER"),
        (["-s", "serial", "--only", "hand-a2a,eps"], 2, "--only takes some of hand-a2a"),
        (["--tokens", "1,0"], 2, "numbers of at least 1"),
        (["--tokens", "8,65"], 2, "at most 64: give -D tokens=65"),
    ],
)
def test_wrong_requests_are_refused_before_anything_starts(arguments: list[str], code: int, text: str) -> None:
    done = command("epsc", "bench", V2, "--preset", "small", "--nproc", "2", *arguments)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr


def test_layers_by_file(tmp_path: Path) -> None:
    """Layers that those by hand are, and one that they are not."""
    files = [V2, ROOT / "examples/mixtral_8x7b.eps", *sorted((ROOT / "benchmarks/layers").glob("*.eps"))]
    for file in files:
        compiled(tmp_path / file.stem, "serial", file=file)
        assert Manifest.read(tmp_path / file.stem).shape is not None
    compiled(tmp_path / "other", "serial", file=ROOT / "examples/gpt_oss_120b.eps")
    other = Manifest.read(tmp_path / "other")
    assert (other.shape, other.unlike) == (None, "they do not know this router")


@pytest.mark.slow
@pytest.mark.distributed
def test_rows_that_go_home_from_the_product_are_measured_beside_others(tmp_path: Path) -> None:
    """At tiny sizes on CPU ranks."""
    new, layer = tmp_path / "new", ("--layers", "mixtral_8x7b")
    done = command("benchmarks.direct", "compile", "-o", new, "--preset", "small", *layer)
    assert done.returncode == 0, done.stderr
    options = ("--tokens", "16", "--rounds", "2", "--runs", "1")
    done = command("benchmarks.direct", "run", new, *layer, *options)
    assert done.returncode == 0, done.stderr
    head, line = done.stdout.strip().splitlines()
    assert "relative error" in head
    assert re.fullmatch(
        r"mixtral_8x7b   T =    16  put \S+  direct \S+  one_sided \S+  direct is \S+x put  error \S+", line
    )
