"""Programs as text: formatted, deterministic, self-contained, safe against what a spec says."""

import ast
import builtins
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from epsc.codegen import emit
from epsc.codegen.gemms import FUNCTIONS
from epsc.codegen.reserved import FILE, MODULE
from epsc.driver import Options, plan, understand
from epsc.ir.errors import EpsError
from epsc.ir.schedule import Schedule, Stage
from epsc.ir.source import Source
from tests.codegen.layers import ALL, V3_BIG, planned, program_of, written

HOSTILE_TEXT = 'x = """ \'\'\' \\ \\" {{ 7 * 7 }} {% raw %} # fmt: off\r\n\x00\x1b[31m\u202e\u2028 é\t\n\n\n'


@pytest.mark.parametrize(("layer", "schedule"), ALL)
def test_verifies(layer: str, schedule: str) -> None:
    written(layer, schedule).verify()


@pytest.mark.parametrize(("layer", "schedule"), ALL)
def test_is_formatted_and_clean(layer: str, schedule: str, tmp_path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("no ruff here")
    path = tmp_path / "program.py"
    path.write_text(written(layer, schedule).text, encoding="utf-8")
    common = ["--isolated", "--line-length", "110", "--target-version", "py311", str(path)]
    for command in (["format", "--diff"], ["check", "--quiet"]):
        done = subprocess.run([ruff, *command, *common], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("layer", "schedule"), [("tiny", "eps"), ("v3", "tokens")])
def test_same_schedule_same_bytes(layer: str, schedule: str) -> None:
    made = planned(layer, schedule)
    again = Schedule.parse(str(made.schedule))
    text = program_of(made).text
    assert text == program_of(replace(made, schedule=again)).text


def test_says_what_the_command_line_changed() -> None:
    made = planned("tiny", "eps")
    settings = Options({"ep": "2", "groups": "3"}, preset="small").told
    assert settings == "--preset small -D ep=2 -D groups=3"
    text = emit(made.schedule, spec_text="", version="1", load=(1, 8), settings=f"{settings}\n\u202e").text
    assert "# What it was compiled from, with --preset small -D ep=2 -D groups=3 \\u202e:\n" in text
    assert "# What it was compiled from:\n" in emit(made.schedule, spec_text="", version="1", load=(1, 8)).text


@pytest.mark.parametrize(("layer", "schedule"), ALL)
def test_no_local_hides_a_name_of_the_file(layer: str, schedule: str) -> None:
    tree = ast.parse(written(layer, schedule).text)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name in ("forward", "reference"):
            stores = (n for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            assert not {n.id for n in stores} & {*FILE, *dir(builtins)}


@pytest.mark.parametrize(("layer", "schedule"), ALL)
def test_all_names_of_the_file_are_reserved(layer: str, schedule: str) -> None:
    """Or a layer could have a value of that name."""
    made = planned(layer, schedule)
    tree = ast.parse(program_of(made).text)
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    defined |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    defined |= {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    acts = ("swiglu", "geglu", "relu2", "sigmoid")
    own = {f"{before}{name}" for name in ("route", *acts) for before in ("", "triton_")}
    own |= {f"triton_{name}_kernel" for name in ("route", *acts)}
    own |= {f"{impl}_{act}" for impl in FUNCTIONS for act in acts}
    own |= {f"{act}_product{suffix}" for act in acts for suffix in ("", "_kernel", "_tiles")}
    own |= {f"{act.upper()}_PRODUCT_TILES" for act in acts}
    layer_class = {n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name not in FILE}
    assert len(layer_class) == 1
    assert defined - own - layer_class <= FILE


def test_module_attributes_are_reserved() -> None:
    import torch

    public = {name for name in dir(torch.nn.Module()) if not name.startswith("_")}
    assert public <= MODULE


def test_hostile_text_stays_in_comments() -> None:
    made = planned("tiny", "eps")
    program = emit(made.schedule, spec_text=HOSTILE_TEXT, version="0.1.0", load=(1, 2))
    plain = emit(made.schedule, spec_text="", version="0.1.0", load=(1, 2))
    assert ast.dump(ast.parse(program.text)) == ast.dump(ast.parse(plain.text))
    assert "\\x1b" in program.text
    assert "{{ 7 * 7 }}" in program.text


@pytest.mark.parametrize("name", ['a"b', "a b", "a\nimport os", "é"])
def test_hostile_names_are_refused(name: str) -> None:
    made = planned("tiny", "serial")
    graph = replace(made.schedule.graph, name=name)
    with pytest.raises(EpsError, match="cannot be a name"):
        emit(replace(made.schedule, graph=graph), spec_text="", version="0.1.0", load=(1, 2))
    with pytest.raises(EpsError, match="cannot be a name"):
        emit(replace(made.schedule, name=name), spec_text="", version="0.1.0", load=(1, 2))


def test_names_that_programs_use_themselves() -> None:
    """A layer whose values and weights are called as python and the program call things."""
    text = V3_BIG
    renames = {"sent": "torch", "back": "view", "gate_up": "forward", "down": "part", "h": "self", "v3": "nn", "x": "F"}
    for old, new in renames.items():
        text = re.sub(rf"\b{old}\b", new, text)
    program = program_of(plan(understand(Source("hostile.eps", text)), "eps"))
    tree = ast.parse(program.text)
    (forward,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "forward")
    stores = {n.id for n in ast.walk(forward) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert {"torch_2", "self_2"} <= stores
    assert not {"torch", "self", "view", "F"} & stores


def test_only_a_finished_schedule() -> None:
    made = planned("tiny", "eps")
    early = replace(made.schedule, stage=Stage.SYNCED)
    with pytest.raises(EpsError, match="not at its last"):
        emit(early, spec_text="", version="0.1.0", load=(1, 2))


def test_waits_are_those_of_the_schedule() -> None:
    made = planned("tiny", "eps")
    tree = ast.parse(program_of(made).text)
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "step":
            keywords = {k.arg: k.value for k in node.keywords}
            if node.args and isinstance(node.args[0], ast.Constant):
                after = keywords.get("after")
                waits = (
                    [e.value for e in after.elts if isinstance(e, ast.Constant)] if isinstance(after, ast.List) else []
                )
                found[node.args[0].value] = (waits, "mark" in keywords)
    awaited = {wait.step for step in made.schedule.steps for wait in step.waits}
    assert list(found) == [step.key for step in made.schedule.steps]
    for step in made.schedule.steps:
        assert found[step.key] == ([wait.step for wait in step.waits], step.key in awaited)


def test_writing_needs_no_torch() -> None:
    code = "import sys, epsc.codegen; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_large_plan_is_written_fast() -> None:
    made = planned("v3_big", "eps")
    times = []
    for _ in range(3):
        start = time.process_time()
        program_of(made)
        times.append(time.process_time() - start)
    assert min(times) < 0.4
