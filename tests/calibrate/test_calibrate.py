"""`epsc calibrate` on CPU ranks: a profile that reads, and a journal that is not measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from epsc.calibrate.probes import CPU_SHAPES, Probe, compile_probes, probes
from epsc.cli import cli
from epsc.machine.device import Origin
from epsc.machine.profile import load


@pytest.mark.parametrize(("backend", "device", "ranks"), [("cuda", "h200", 2), ("cpu", "cpu", 2)])
def test_every_probe_compiles(backend: str, device: str, ranks: int, tmp_path: Path) -> None:
    assert compile_probes(tmp_path, device, backend, ranks) == []
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [probe["name"] for probe in manifest["probes"]] == [probe.name for probe in probes(backend)]
    for probe in manifest["probes"]:
        text = (tmp_path / probe["file"]).read_text()
        for entry in probe["loads"]:
            assert all(f'"{step}"' in text for step in entry["steps"])  # what the ranks will find in their spans


@pytest.mark.distributed
@pytest.mark.slow
def test_cpu_ranks_are_calibrated_and_the_journal_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    command = ["calibrate", "-o", str(path), "--nproc", "2", "--budget", "4"]
    for _ in range(20):  # each start goes on where the last one ended
        if CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0:
            found = json.loads(Path(f"{path}.journal").read_text())
            if sum(name.startswith("program: ") for name in found) == len(list(probes("cpu"))):
                break
    else:
        pytest.fail("it was never done")
    device = load(str(path)).device
    assert device.origin is Origin.MEASURED
    assert ("all2all", "gloo") in device.table
    before = path.read_text()
    CliRunner().invoke(cli, command, catch_exceptions=False)  # nothing is left to measure
    assert path.read_text() == before


@pytest.mark.distributed
def test_a_probe_that_breaks_its_process_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two probes one raises and one ends its process; what is left makes the profile."""
    chosen = [Probe(name, CPU_SHAPES[0], "") for name in ("good", "raises", "ends")]
    monkeypatch.setattr("epsc.calibrate.probes.probes", lambda backend: iter(chosen))
    monkeypatch.setattr("epsc.commands.calibrate.WORTH", 1.0)

    def compiled(folder: Path, *given: Any) -> list[str]:
        refused = compile_probes(folder, *given)
        for number, line in ((1, "raise RuntimeError('no')"), (2, "import os; os._exit(7)")):
            path = folder / f"probe_{number}.py"
            text = path.read_text()
            assert text.count("        self.run.join()\n") == 1
            path.write_text(text.replace("        self.run.join()\n", f"        {line}\n"))
        return refused

    monkeypatch.setattr("epsc.calibrate.probes.compile_probes", compiled)
    path = tmp_path / "here.toml"
    done = CliRunner().invoke(cli, ["calibrate", "-o", str(path), "--nproc", "2", "--budget", "60"])
    assert done.exit_code == 0, done.output
    assert "program: raises failed, and is left out: RuntimeError: no" in done.output
    assert "program: ends failed, and is left out: its process ended with exit code" in done.output
    found = json.loads(Path(f"{path}.journal").read_text())
    assert "program: good" in found
    assert set(found["failed"]) == {"program: raises", "program: ends"}
    assert ("all2all", "gloo") in load(str(path)).device.table


def test_a_machine_without_the_compiler_measures_for_another(tmp_path: Path) -> None:
    """Here the journal is made up: what the ranks write there is tested by the others."""
    path = tmp_path / "far.toml"
    command = ["calibrate", "-o", str(path), "--device", "h200", "--nproc", "2"]
    done = CliRunner().invoke(cli, [*command, "--only", "compile"], catch_exceptions=False)
    assert f"-m epsc.calibrate {path}.probes --journal {path}.journal" in done.output
    done = CliRunner().invoke(cli, [*command, "--only", "write"])
    assert done.exit_code == 3
    journal = {"torch": "2.11", "sms": 132, "capability": [9, 0], "machine: bf16_flops": 700e12}
    Path(f"{path}.journal").write_text(json.dumps(journal))
    done = CliRunner().invoke(cli, [*command, "--only", "write"], catch_exceptions=False)
    assert done.exit_code == 0
    made = load(str(path)).device
    assert (made.backend, made.flops_bf16, made.tables) == ("cuda", 700e12, load("h200x2").device.tables)
