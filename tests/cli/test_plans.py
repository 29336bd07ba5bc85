"""Commands and a schedule that takes others by load: all of its plans, or the one for a load."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from epsc import driver, plans
from epsc.cli import cli
from epsc.ir.errors import EpsError
from epsc.render.html.page import unpack
from epsc.render.plan import plan_parse

FILE = """
layer moe(x: fp32[tokens, 24]) {
  r    = route(x, experts=8, top_k=3)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 32))
  back = combine(gemm(h, down, 24), r)
  return back
}
cluster c { ep = 2 }
tokens 1 .. 100
schedule serving = decode when tokens <= 8 else serial
schedule decode { use put for sent, back }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "m.eps").write_text(FILE)
    return tmp_path / "m.eps"


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def test_compile_writes_one_program_and_all_plans(path: Path) -> None:
    said = run("compile", path, "-o", path.parent, "--plan")
    assert "moe_serving.py" in said
    plans = json.loads((path.parent / "moe_serving.json").read_text())["plans"]
    assert [plan["tokens"] for plan in plans] == [[1, 8], [9, 100]]
    assert [plan["schedule"]["name"] for plan in plans] == ["decode", "serial"]


def test_check_says_which_plan_is_taken_where(path: Path) -> None:
    assert "`serving` takes `decode` for 1 to 8 tokens, `serial` for 9 to 100 tokens" in run("check", path)


def test_inspect_shows_all_plans_or_that_for_a_load(path: Path) -> None:
    both = run("inspect", path, "--steps")
    heads = [line for line in both.splitlines() if line.startswith("serving, ")]
    assert heads == [
        "serving, 1 to 8 tokens on the rank that has most: decode",
        "serving, 9 to 100 tokens on the rank that has most: serial",
    ]
    one = run("inspect", path, "--steps", "--at", 9)
    assert heads[1] in one
    assert heads[0] not in one
    assert plan_parse(run("inspect", path, "--json", "--at", 3)).name == "decode"
    assert [plan["tokens"] for plan in json.loads(run("inspect", path, "--json"))["plans"]] == [[1, 8], [9, 100]]
    refused = CliRunner().invoke(cli, ["inspect", str(path), "--svg"])
    assert refused.exit_code == 2
    assert "give --at TOKENS" in refused.output


@pytest.mark.parametrize("command", ["inspect", "explain"])
def test_a_load_picks_among_plans_only(path: Path, command: str) -> None:
    refused = CliRunner().invoke(cli, [command, str(path), "-s", "decode", "--at", "5"])
    assert isinstance(refused.exception, EpsError | SystemExit) and refused.exit_code == 1
    assert "`decode` is one plan for every load" in refused.output + str(refused.exception)
    refused = CliRunner().invoke(cli, [command, str(path), "-s", "serving", "--at", "101"])
    assert isinstance(refused.exception, EpsError | SystemExit) and refused.exit_code == 1
    assert "--at 101: the plans are for at most 100 tokens of a rank" in refused.output + str(refused.exception)


def test_check_names_no_schedule_as_a_plan_of_itself(path: Path) -> None:
    path.write_text(FILE + "schedule same = decode")
    assert "`same` takes one plan for 1 to 100 tokens" in run("check", path)
    assert "`serving` takes one plan for 20 tokens" in run("check", path, "-D", "tokens=20")


def test_the_page_of_plans_beside_another_schedule_shows_each_where_it_is_taken(path: Path) -> None:
    page = path.parent / "page.html"
    run("inspect", path, "-s", "serving", "-s", "decode", "--html", page)
    packed = re.search(r'<script id="data"[^>]*>([^<]*)<', page.read_text())
    assert packed
    sides = unpack(packed[1])["sides"]
    assert [(side["name"], side["range"]) for side in sides] == [
        ("decode", [1, 8]),
        ("serial", [9, 100]),
        ("decode", None),
    ]
    loads = [{each["load"] for each in side["runs"]} for side in sides]
    assert loads[2] == loads[0] | loads[1] and not loads[0] & loads[1]


def test_explain_says_what_plans_take_on_both_sides_of_a_border(path: Path) -> None:
    said = run("explain", path, "--at", 5).splitlines()
    assert said[0] == "serving: `decode` for 1 to 8 tokens, `serial` for 9 to 100 tokens"
    assert [line.split()[:3] for line in said[1:3]] == [["at", "8", "tokens"], ["at", "9", "tokens"]]
    assert said[3] == "explained: decode, for 1 to 8 tokens"
    assert said[5].startswith("decode, 8 tokens per rank")
    assert "explained: serial, for 9 to 100 tokens" in run("explain", path)


def test_compare_and_diff_take_the_plan_for_the_load(path: Path) -> None:
    found = {row["name"]: row for row in json.loads(run("compare", path, "--json"))["schedules"]}
    few = {row["name"]: row for row in json.loads(run("compare", path, "-D", "tokens=8", "--json"))["schedules"]}
    assert few["serving"]["seconds"] == few["decode"]["seconds"]
    assert found["serving"]["seconds"] != found["decode"]["seconds"]
    assert "serving" in run("diff", f"{path}:serving", ":decode")


def test_tune_asks_for_the_loads_of_auto(path: Path) -> None:
    path.write_text(FILE.replace("else serial", "else auto") + "schedule found = auto by tokens")
    layer = driver.understand(driver.read(path))
    assert plans.loads_of_auto(layer, "serving") == (100,)
    assert plans.loads_of_auto(layer, "found") == (1, 2, 4, 8, 16, 32, 64, 100)
    with pytest.raises(EpsError, match="`decode` does not ask `auto`"):
        plans.loads_of_auto(layer, "decode")


def test_the_page_holds_the_program_and_each_plan_its_lines_of_it(path: Path) -> None:
    run("inspect", path, "--html", path.with_suffix(".html"))
    packed = re.search(r'<script id="data"[^>]*>([^<]*)<', path.with_suffix(".html").read_text())
    assert packed
    sides = unpack(packed[1])["sides"]
    assert [side["range"] for side in sides] == [[1, 8], [9, 100]]
    assert len({side["program"]["text"] for side in sides}) == 1
    lines = sides[0]["program"]["text"].splitlines()
    begins = [lines.index(f"class {name}:") for name in ("Decode", "Serial")]
    for side, (begin, end) in zip(sides, ((begins[0], begins[1]), (begins[1], len(lines))), strict=True):
        for step in side["steps"]:
            if step["code"] is not None:
                assert begin < step["code"] < end
                assert f'.step("{step["key"]}"' in lines[step["code"] - 1] + lines[step["code"]]
        assert sum(step["code"] is not None for step in side["steps"]) > 5
