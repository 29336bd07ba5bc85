"""`epsc calibrate` on CPU ranks: a profile that reads, and a journal that is not measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from epsc.calibrate.probes import compile_probes, probes
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
