"""`epsc explain` tells where time goes, and holds predictions against what a program measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from epsc.cli import cli
from epsc.ir.errors import EpsError

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "mixtral_8x7b.eps")


def explain(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["explain", EXAMPLE, "-D", "tokens=4096", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_what_a_graph_takes_is_told_beside_what_the_host_issues() -> None:
    heads = explain("-s", "one_sided").splitlines()[:2]
    assert re.fullmatch(r"  \S+ ms as a CUDA graph, as plans are compared; what follows .*", heads[1])
    assert "CUDA graph" not in explain("-s", "serial").partition("where the time goes")[0]


def test_serial_is_explained() -> None:
    told = explain("-s", "serial")
    heads = [line for line in told.splitlines() if line and not line.startswith(" ")]
    assert heads[0].startswith("serial, 4096 tokens per rank, ep 2: ")
    assert "with profile h200x2 (measured)" in heads[0]
    assert [head.partition(":")[0] for head in heads[1:]] == [
        "where the time goes",
        "what is exposed",
        "plans, by prediction",
        "what would change the decision",
    ]
    shares = [int(share) for share in re.findall(r" (\d+)%$", told.partition("what is exposed")[0], re.MULTILINE)]
    assert 98 <= sum(shares) <= 102
    assert "taken" in told and "16384 tokens per rank" in told and "links twice as fast" in told


def test_what_imbalance_costs_is_told_without_being_asked() -> None:
    # With 2 ranks the busiest cannot have more than all of it.
    told = explain("-s", "serial")
    found = re.search(r"busiest rank has 1.5 x the rows +this plan takes (\S+) ms, not the (\S+) ms of balanced", told)
    assert found and float(found[1]) > 1.2 * float(found[2])
    assert re.search(r"ms in back\.all2all: load imbalance: for \d+% of it nothing moves", told)
    assert re.search(r"of the best plans \w+ would be taken, \S+ ms", told)
    assert "load imbalance" not in told.partition("plans, by prediction")[0]


def test_ranks_that_are_alike_change_nothing() -> None:
    told = explain("-s", "one_sided", "--skew", "1")
    taken = re.search(r"^  (\w+) +(\S+ \ws) +taken", told, re.MULTILINE)
    assert taken and f"of the best plans {taken[1]} would be taken, {taken[2]}" in told
    own = re.search(r"one_sided \(this plan\) +(\S+ \ws)", told)
    assert own and f"this plan takes {own[1]}, as with balanced loads, as a CUDA graph" in told


def test_a_profile_changes_what_is_said() -> None:
    assert "h800x8 (published figures, not measured)" in explain("-s", "serial", "--profile", "h800x8").splitlines()[0]


def measured(path: Path, **change: Any) -> str:
    found = {"schedule": "serial", "ranks": 2, "tokens": [4096, 4096], "bench": {"median_ms": 6.0}, **change}
    path.write_text(json.dumps(found))
    return str(path)


def test_a_measurement_is_held_against_the_prediction(tmp_path: Path) -> None:
    told = explain("-s", "serial", "--measured", measured(tmp_path / "m.json"))
    found = re.search(r"4096 tokens: 6\.000 ms measured, (\S+) ms predicted \((\S+)%\)", told)
    assert found
    assert int(found[2]) == round((float(found[1]) / 6 - 1) * 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "eps"}, "measured `eps` on 2 ranks, not `serial` on 2"),
        ({"ranks": 8}, "measured `serial` on 8 ranks, not `serial` on 2"),
        ({"bench": {}}, "holds no measurement"),
    ],
)
def test_a_measurement_of_something_else_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EpsError, match=message):
        explain("-s", "serial", "--measured", measured(tmp_path / "m.json", **change))
