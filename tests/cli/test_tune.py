"""`epsc tune`: what is measured, what wins, what is kept, and that `auto` takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from epsc import driver, lock
from epsc.cli import cli
from epsc.commands.tune import Result, tune_layer, winner
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.spec import ScheduleDecl

EXAMPLE = Path(__file__).parents[2] / "examples" / "mixtral_8x7b.eps"


def layer(path: Path, tokens: int = 4096) -> driver.Layer:
    path.write_text(EXAMPLE.read_text())
    return driver.understand(driver.read(path), driver.Options({"ep": "2", "tokens": str(tokens)}))


class Machine:
    """Measures what it is told: milliseconds by the number of steps, so that the plan is what decides."""

    def __init__(self, serial: float, cut: float, drift: float = 0.0, broken: str = "") -> None:
        self.serial, self.cut, self.drift, self.broken = serial, cut, drift, broken
        self.asked: list[str] = []

    def __call__(self, plan: driver.Plan, tokens: int) -> dict[str, Any]:
        self.asked.append(plan.schedule.name)
        if plan.schedule.name == self.broken:
            raise EpsError(Diagnostic("program-failed", "exit code 1"))
        ms = self.serial if plan.schedule.name == "serial" else self.cut
        return {"bench": {"median_ms": ms * (1 + self.drift * len(self.asked))}, "device": "cpu"}


def tuned(path: Path, machine: Machine) -> tuple[lock.Entry | None, list[str]]:
    said: list[str] = []
    return tune_layer(layer(path), 2, machine, said.append), said


def test_a_clear_winner_is_kept_and_auto_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "m.eps"
    machine = Machine(serial=10, cut=8)
    entry, said = tuned(path, machine)
    assert entry is not None
    assert machine.asked == [*machine.asked[:3], *machine.asked[:3][::-1]]  # there and back
    assert any("wins: 1.25 times as fast as serial" in line for line in said)
    before = driver.plan(layer(path), "best")
    assert before.considered  # predicted
    (tmp_path / "m.eps.lock").write_text(lock.with_entry(tmp_path / "m.eps.lock", entry))
    after = driver.plan(layer(path), "best")
    assert not after.considered
    assert after.schedule.name == "best"
    wanted = driver.plan_as(layer(path), entry.decl)
    assert [s.key for s in after.schedule.steps] == [s.key for s in wanted.schedule.steps]
    # Another load, device or number of ranks was not measured.
    assert driver.plan(layer(path, tokens=1000), "best").considered


def test_serial_wins_unless_beaten_beyond_the_noise(tmp_path: Path) -> None:
    entry, said = tuned(tmp_path / "m.eps", Machine(serial=10, cut=9.9))
    assert entry is not None
    assert entry.schedule == "schedule tuned { }\n"
    assert any(line.startswith("serial wins") for line in said)


@pytest.mark.parametrize(
    ("serial", "cut", "wins"),
    [
        ((10, 10), (9, 9), "cut"),
        ((10, 10), (9.9, 9.9), "serial"),  # 1 %: less than two medians of a quiet machine differ by
        ((10, 12), (9.5, 9.6), "serial"),  # serial itself differs by 20 %
        ((10, 10), (8, 10), "serial"),  # and so does the other
        ((10, 10), (11, 11), "serial"),
    ],
)
def test_the_noise_is_that_of_the_two(serial: tuple[float, float], cut: tuple[float, float], wins: str) -> None:
    results = [Result(ScheduleDecl(n), 1.0, m) for n, m in (("serial", serial), ("cut", cut), ("loud", (20, 90)))]
    assert winner(results)[0].decl.name == wins


def test_what_fails_is_left_out_and_without_serial_nothing_is_kept(tmp_path: Path) -> None:
    machine = Machine(serial=10, cut=8)
    tuned(tmp_path / "m.eps", machine)
    first = machine.asked[1]
    machine = Machine(serial=10, cut=8, broken=first)
    entry, said = tuned(tmp_path / "m.eps", machine)
    assert entry is not None
    assert first not in entry.milliseconds
    assert machine.asked.count(first) == 1
    assert any("failed: exit code 1" in line for line in said)
    assert tuned(tmp_path / "m.eps", Machine(10, 8, broken="serial"))[0] is None


def test_entries_of_one_key_replace_each_other(tmp_path: Path) -> None:
    path = tmp_path / "l.lock"
    first, _ = tuned(tmp_path / "m.eps", Machine(10, 8))
    second, _ = tuned(tmp_path / "m.eps", Machine(8, 10))
    assert first is not None and second is not None
    path.write_text(lock.with_entry(path, first))
    assert lock.load(path) == (first,)
    path.write_text(lock.with_entry(path, second))
    assert lock.load(path) == (second,)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "entries": []}', '{"format": 1, "entries": [{}]}'])
def test_what_is_no_lock_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.eps"
    (tmp_path / "m.eps.lock").write_text(text)
    with pytest.raises(EpsError, match=r"m\.eps\.lock is no lock file"):
        driver.plan(layer(path), "best")


@pytest.mark.distributed
@pytest.mark.slow
def test_cpu_ranks_are_tuned_for_real(tmp_path: Path) -> None:
    path = tmp_path / "m.eps"
    path.write_text(EXAMPLE.read_text())
    command = ["tune", str(path), "--preset", "small", "--nproc", "2", "--best", "1", "--iters", "15"]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (entry,) = json.loads((tmp_path / "m.eps.lock").read_text())["entries"]
    assert entry["key"]["device"] == "cpu"
    assert entry["milliseconds"]["serial"] > 0
    assert (entry["schedule"] == "schedule tuned { }\n") == ("serial wins" in result.output)
