"""The script that measures tiles: what it writes is a profile's table, and what was chosen is what was fastest."""

from pathlib import Path

import pytest

from benchmarks.tiles.__main__ import main
from benchmarks.tiles.choice import best, chosen
from epsc.machine.profile import parse
from epsc.machine.tiles import Tile

HEAD = """
base = "h200x2"
device = "h200"
measured = true
origin = "here"
"""
A, B, C = Tile(64), Tile(128), Tile(256)


def test_the_fastest_that_is_right_is_taken() -> None:
    assert best({A: (1.0, float("nan")), B: (3.0, 1e-3), C: (2.0, 1e-3)}, None) == C
    assert best({B: (2.01, 1e-3), C: (2.0, 1e-3)}, B) == B  # as for fewer rows: the difference is noise
    assert best({B: (2.1, 1e-3), C: (2.0, 1e-3)}, B) == C
    assert chosen({0: {A: (1.0, 0.0), B: (2.0, 0.0)}, 8: {A: (2.0, 0.0), B: (1.0, 0.0)}}) == {0: A, 8: B}


def test_it_runs_and_writes_a_profile(interpreted: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["--tiny", "--out", str(tmp_path / "tiles.toml")]) == 0
    profile = parse(HEAD + (tmp_path / "tiles.toml").read_text(), "made", "made.toml")
    up, down = profile.device.tiles[-2:]
    assert (up.out, up.deep, up.act, down.out, down.deep, down.act) == (64, 32, True, 32, 32, False)
    assert [rows for rows, _ in up.points] == [0, 70]
    assert "worst error" in capsys.readouterr().out
