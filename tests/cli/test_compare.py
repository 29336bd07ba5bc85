"""`epsc compare`: schedules of one layer as rows of one table and as one picture; other layers are refused."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from epsc import driver
from epsc.cli import cli
from epsc.ir.errors import EpsError
from epsc.ir.same import unlike
from epsc.ir.source import Source
from epsc.machine.simulate import simulate
from epsc.machine.totals import totals

EXAMPLE = Path(__file__).parents[2] / "examples" / "mixtral_8x7b.eps"
PAPERS = Path(__file__).parents[2] / "examples" / "papers"
SVG = "{http://www.w3.org/2000/svg}"


def compare(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["compare", *arguments], catch_exceptions=False, standalone_mode=False)
    return result.stdout


def rows(*arguments: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(compare(*arguments, "--json"))["schedules"]}


def test_figures_are_those_of_the_timeline() -> None:
    found = rows(str(EXAMPLE), "-s", "eps", "-s", "serial", "-D", "tokens=4096")
    assert list(found) == ["eps", "serial"]
    layer = driver.understand(driver.read(EXAMPLE), driver.Options(defines={"tokens": "4096"}))
    for name, row in found.items():
        plan = driver.plan(layer, name)
        timeline = simulate(plan.schedule, layer.cluster, 4096)
        assert row["seconds"] == timeline.total
        assert row["exposed"] == timeline.exposed_transfer
        assert row["launches"] == sum(event.work.launches for event in timeline.events)
    # 4096 tokens, 2 copies each, half of them to the other rank, there and back, 4096 columns of 2 bytes.
    # And counts of rows, one for each expert.
    assert found["serial"]["sent"] == 2 * 4096 * 2 * 4096 * 2 / 2 + 8 * 8 / 2
    # 4 experts on each of 2 ranks: gate_up, down; and the router.
    assert found["serial"]["held"] == 2 * (4 * 3 * 14336 * 4096 + 8 * 4096)
    assert found["serial"]["weights"] == pytest.approx(found["serial"]["held"])
    assert found["eps"]["launches"] > found["serial"]["launches"]


def test_weights_are_read_once_for_each_chunk_that_needs_them() -> None:
    """By groups each expert's weights are read once; by tokens once for each of 4 chunks."""
    found = rows(str(EXAMPLE), "-s", "eps", "-s", "capacity", "-D", "tokens=4096")
    assert found["capacity"]["weights"] > 3.9 * found["eps"]["weights"]


def test_sums_by_rank_round_once_more() -> None:
    layer = driver.understand(
        Source(
            "moe.eps",
            """layer moe(x: bf16[tokens, 64]) {
              r = route(x, experts=8, top_k=2)
              sent = dispatch(x, r)
              back = combine(gemm(sent, w, 64), r)
              return back
            }
            cluster two { device = h200  ep = 2 }
            schedule serial { }
            schedule by_rank { use put for sent, back  local_reduce back }
            schedule by_copy { use put for sent, back }""",
        )
    )
    found = {}
    for name in ("serial", "by_rank", "by_copy"):
        schedule = driver.plan(layer, name).schedule
        found[name] = totals(schedule, simulate(schedule, layer.cluster, 64)).roundings
    assert found == {"serial": 2, "by_rank": 3, "by_copy": 2}


def test_one_picture_on_one_axis(tmp_path: Path) -> None:
    picture = tmp_path / "all.svg"
    compare(str(EXAMPLE), "-s", "eps", "-s", "serial", "-D", "tokens=4096", "--svg", str(picture))
    root = ElementTree.fromstring(picture.read_text())
    ends: dict[str, float] = {}
    layer = driver.understand(driver.read(EXAMPLE), driver.Options(defines={"tokens": "4096"}))
    lines = {n: simulate(driver.plan(layer, n).schedule, layer.cluster, 4096) for n in ("eps", "serial")}
    heads = sorted(
        (float(text.get("y", "")), str(text.text).partition(",")[0])
        for text in root.iter(f"{SVG}text")
        if text.get("font-weight") == "bold"
    )
    assert [name for _, name in heads] == ["eps", "serial"]
    for rect in root.iter(f"{SVG}rect"):
        if rect.find(f"{SVG}title") is not None:
            name = max(head for head in heads if head[0] < float(rect.get("y", "")))[1]
            end = float(rect.get("x", "")) + float(rect.get("width", ""))
            ends[name] = max(ends.get(name, 0), end)
    long, short = sorted(lines, key=lambda n: lines[n].total, reverse=True)
    assert (ends[short] - 110) / (ends[long] - 110) == pytest.approx(lines[short].total / lines[long].total, rel=0.01)


def test_other_layers_are_refused_but_their_schedules_can_be_had() -> None:
    with pytest.raises(EpsError, match=r"another layer than `mixtral_8x7b`.*it has route\(.*experts=160") as caught:
        compare(str(EXAMPLE), str(PAPERS / "eps_moe.eps"), "-D", "hidden=4096")
    assert "--on" in str(caught.value)
    found = rows(str(PAPERS / "tutel.eps"), "--on", str(EXAMPLE), "-D", "degree=2", "-D", "tokens=4096")
    assert set(found) == {"tutel", "serial", "degree_2", "dictionary"}
    assert found["dictionary"]["seconds"] == found["degree_2"]["seconds"]
    own = rows(str(EXAMPLE), "-s", "serial", "-D", "tokens=4096")
    assert {**found["serial"], "file": ""} == {**own["serial"], "file": ""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-s", "nothing"), "none of these files has a schedule `nothing`"),
        (("-D", "nothing=1"), "`-D nothing` sets what no `let` of these files defines"),
        (("--preset", "nothing"), "no preset `nothing` in these files"),
    ],
)
def test_unknown_names_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(EpsError, match=message):
        compare(str(EXAMPLE), *arguments)


def test_a_misspelled_schedule_is_told_which_there_are() -> None:
    with pytest.raises(EpsError) as refused:
        compare(str(EXAMPLE), "-s", "serail")
    assert refused.value.diagnostics[0].help == "did you mean `serial`?"


def graph(body: str) -> Any:
    text = f"layer l(x: bf16[tokens, 8]) {{ {body} }}\ncluster c {{ device = h200  ep = 1 }}"
    return driver.understand(Source("l.eps", text)).said


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("q = gemm(x, v, 8) return q + gemm(x, u, 8)", ""),
        ("a = gemm(x, u, 8) return a + gemm(a, v, 8)", "its ops are the same, but read other values"),
        ("a = gemm(x, u, 8) return a + gemm(x, w, 8)", "it has gemm(w, out=8), not gemm(v, out=8)"),
        ("a = gemm(x, u, 8) b = gemm(x, v, 8) return a + b + a", "it has add()"),
        ("return gemm(x, u, 8)", "it lacks gemm(v, out=8)"),
    ],
)
def test_what_makes_a_layer_the_same(body: str, why: str) -> None:
    assert unlike(graph("a = gemm(x, u, 8) b = gemm(x, v, 8) return a + b"), graph(body)) == why


@pytest.mark.distributed
def test_measured() -> None:
    found = rows(
        str(EXAMPLE), "--preset", "small", "-s", "serial", "-s", "eps", "--measure", "--nproc", "2", "-D", "tokens=32"
    )
    for row in found.values():
        assert 0 < row["measured"] < 10 and 0 <= row["error"] < 1e-5
