"""benchmarks.regret: what it measures, and what it makes of that."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles

import pytest

from benchmarks.regret.plans import Case, asked, family, worth
from benchmarks.regret.plot import svg
from benchmarks.regret.report import Measured, Row, rows_of, summary

ROOT = Path(__file__).parents[2]
V2 = ROOT / "examples/deepseek_v2.eps"


def test_of_every_family_one_is_measured_and_what_auto_takes_at_every_load() -> None:
    cases = [Case(V2, tokens, ranks=2) for tokens in (16, 8192)]
    plans = worth(cases)
    families = set()
    for case in cases:
        best, every = asked(case, 8192)
        assert best.decl.name in {*plans, "serial"}
        families |= {family(c.decl) for c in every if c.decl.name != "serial"}
    assert {family(decl) for decl in plans.values()} == families
    assert len(families) >= 6  # collectives uncut, by expert group, by tokens; four one-sided
    assert len(plans) <= 2 * len(families), "too many to measure: of a family the best at each load will do"


ROW = Row(
    "v2",
    16,
    (
        Measured("serial", False, (2.0, 2.0), 1.8),
        Measured("put", False, (1.5, 1.5), 1.2),
        Measured("put", True, (1.1, 1.0), 1.05),
        Measured("copy", True, (1.0, 1.2), 1.1),
    ),
    "put+graph",
)


def test_regret_by_hand() -> None:
    assert ROW.pick is not None and ROW.pick.ms == 1.05
    assert ROW.best is ROW.pick
    assert ROW.regret == 0
    # The first run takes copy; in the last, that is 20 % behind put.
    assert ROW.tuned_regret == pytest.approx(0.2)
    slower = Row("v2", 64, (ROW.serial, Measured("put", False, (2.2, 2.2), 1.0)), "put")
    assert slower.regret == pytest.approx(0.1)
    assert slower.tuned_regret == 0
    unknown = Row("v2", 64, (ROW.serial,), "")
    text = "\n".join(summary([ROW, slower, unknown]))
    assert "Slower than serial by more than 2 %: v2 at 64." in text
    assert "Picked, but not measured: v2 at 64." in text
    assert svg([ROW, slower]).count("<circle") == 6 + 3


def measured(*layers: str) -> list[Row]:
    kept = json.loads((ROOT / "benchmarks/regret/h200x2.json").read_text())
    kept["layers"] = {name: kept["layers"][name] for name in layers or kept["layers"]}
    return list(rows_of(kept))


def test_what_auto_picks_was_measured_to_be_near_the_best() -> None:
    for row in measured("qwen3_30b_a3b"):
        assert row.regret is not None and row.regret <= 0.07


def test_products_with_biases_are_predicted() -> None:
    """GPT-OSS: biases, and weights that lie as [in, out], by the persistent product."""
    for row in measured("gpt_oss_120b"):
        found = row.by_name["copy_beside_sms_0+graph"]
        assert abs(found.error) < 0.15
        assert found.ms < row.serial.ms
        assert found.predicted < row.serial.predicted


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_regret_and_errors_of_all_cases() -> None:
    rows = measured()
    assert len(rows) == 40
    regrets = [row.regret for row in rows if row.regret is not None]
    assert len(regrets) >= 30
    assert median(regrets) <= 0.02
    assert max(regrets) <= 0.07  # 5 % was the goal; three cases miss it
    assert all(row.pick.ms <= row.serial.ms for row in rows if row.pick)
    every = [found for row in rows for found in row.every]
    assert median(abs(found.error) for found in every) <= 0.08
    # 20 % is the goal for nineteen of twenty. Without a graph the host decides, and hosts differ: see `measured_host`.
    graphs = [abs(found.error) for found in every if found.graph]
    assert median(graphs) <= 0.05
    assert quantiles(graphs, n=20, method="inclusive")[-1] <= 0.16
    hosted = [abs(found.on_its_host / found.ms - 1) for found in every if found.on_its_host]
    assert len(hosted) == len(every) - 8
    assert median(hosted) <= 0.08
    assert quantiles(hosted, n=20, method="inclusive")[-1] <= 0.2
    picked = [abs(row.pick.error) for row in rows if row.pick]
    assert median(picked) <= 0.05
    assert quantiles(picked, n=20, method="inclusive")[-1] <= 0.12


@pytest.mark.distributed
@pytest.mark.slow
def test_all_three_steps_on_cpu_ranks(tmp_path: Path) -> None:
    def step(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks.regret", *map(str, arguments)]
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        env = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, env=env, text=True, capture_output=True, timeout=100, cwd=ROOT)

    few = ["--preset", "small", "--loads", "16", "32", "--near", "1", "-o", tmp_path]
    assert step("compile", V2, *few).returncode == 0
    done = step("measure", tmp_path, "--budget", "5")
    assert done.returncode == 4
    assert "deepseek_v2: not begun, the time is up" in done.stderr
    done = step("measure", tmp_path, "--budget", "90", "--rounds", "2", "--out", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    before = (tmp_path / "results/deepseek_v2.json").read_bytes()
    assert step("measure", tmp_path, "--out", tmp_path / "results").returncode == 0
    assert (tmp_path / "results/deepseek_v2.json").read_bytes() == before  # nothing was left to do
    page, kept = tmp_path / "page.md", tmp_path / "kept.json"
    done = step("report", tmp_path, "--page", page, "--keep", kept)
    assert done.returncode == 0, done.stderr
    assert "2 cases" in done.stdout
    assert "| deepseek_v2 | 16 |" in page.read_text()
    layer = json.loads(kept.read_text())["layers"]["deepseek_v2"]
    assert set(layer["cells"]) == {"16", "32"}
    assert set(layer["cells"]["16"]) >= {"serial"}
