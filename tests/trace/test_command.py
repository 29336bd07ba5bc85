"""`epsc trace`, and what must load without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from epsc.cli import main

BLOCK = "tests.trace.styles:Dense"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["epsc", "trace", *arguments])
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def test_a_class_becomes_a_file_that_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from epsc import driver

    path = tmp_path / "dense.eps"
    assert run(monkeypatch, BLOCK, "-o", str(path), "--name", "mine") == 0
    assert "verified against tests.trace.styles:Dense" in capsys.readouterr().out
    layer, _ = driver.check(driver.read(path))
    assert layer.graph.name == "mine"
    assert "layer mine(x: bf16[tokens, 32])" in path.read_text()


@pytest.mark.parametrize(
    ("block", "config", "message"),
    [
        ("tests.trace.nothing:Dense", None, "cannot import `tests.trace.nothing`"),
        ("tests.trace.styles:Dens", None, "did you mean `Dense`?"),
        (BLOCK, {"width": 3}, "`tests.trace.styles:Dense` cannot be made: TypeError"),
        (BLOCK, [1], "should hold one JSON object"),
        ("torch.nn:ReLU", None, "has no parameters"),
    ],
)
def test_errors(
    block: str,
    config: object,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    more = [] if config is None else ["--config", str(tmp_path / "config.json")]
    assert run(monkeypatch, block, *more) == 1
    assert message in capsys.readouterr().err


def test_transformers_blocks_take_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setattr("warnings.showwarning", lambda *_: None)
    config = {"hidden_size": 32, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    block = "transformers.models.mixtral.modeling_mixtral:MixtralSparseMoeBlock"
    assert run(monkeypatch, block, "--config", str(tmp_path / "config.json"), "--dtype", "fp32") == 0
    assert "route(x, experts=4, top_k=2, renorm=true)" in capsys.readouterr().out


def test_reading_files_loads_no_torch() -> None:
    code = "import sys, epsc, epsc.cli, epsc.driver; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
