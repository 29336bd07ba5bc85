"""Lines of Python in comments: what is one, what it holds for, and that nothing of it is more than a comment."""

from __future__ import annotations

import pytest

from epsc import driver
from epsc.ir.places import Place, named, places_in, short_names
from epsc.ir.source import Source

LAYER = """
layer inner(x: bf16[tokens, 64]) {{
  return gemm(x, w, 64)
}}

layer outer(x: bf16[tokens, 64]) {{
  {first}
  a = gemm(x, up, 64)
  b = relu(a)
  # a plain comment
  {second}
  c = inner(b)
  return c
}}
"""


@pytest.mark.parametrize(
    ("comment", "place"),
    [
        ("model.py:31", Place("model.py", 31)),
        ("a/model.py:31: y = f(x)", Place("a/model.py", 31, "y = f(x)")),
        ("model.py:31: y: int = {1: 2}", Place("model.py", 31, "y: int = {1: 2}")),
        ("model.py:31:", Place("model.py", 31)),
        ("model.py:0", None),
        ("model.py:31 y", None),
        ("see model.py:31", None),
        ("model.pyc:31", None),
        ("model.py", None),
        ("note: 12", None),
    ],
)
def test_what_names_a_line(comment: str, place: Place | None) -> None:
    assert Place.parse(comment) == place
    if place:
        assert Place.parse(place.comment) == place


def test_a_place_is_told_once_and_short_where_that_is_clear() -> None:
    found = places_in(["a/model.py:3: x", "words", "a/model.py:3: x", "b/moe.py:4", "b/moe.py:7", "c/moe.py:4"])
    short = short_names(found)
    assert named(short[place] for place in found) == "model.py:3, b/moe.py:4, :7, c/moe.py:4"


def test_a_place_holds_for_the_statements_below_it() -> None:
    text = LAYER.format(first="# m.py:1: one", second="# m.py:2\n  # m.py:3")
    graph = driver.understand(Source("m.eps", text)).said
    assert {node.name: [place.line for place in node.places] for node in graph.nodes} == {
        "a": [1],
        "b": [1],
        "c.w": [2, 3],
    }


def test_ops_that_are_joined_keep_the_lines_of_both() -> None:
    text = """layer moe(x: bf16[tokens, 64]) {
  # m.py:1
  r    = route(x, experts=4, top_k=2)
  # m.py:2
  sent = dispatch(x, r)
  # m.py:3
  up   = gemm(sent, gate_up, 2*64)
  # m.py:4
  h    = swiglu(up)
  # m.py:5
  back = combine(gemm(h, down, 64), r)
  # m.py:6
  return back + x
}
"""
    graph = driver.understand(Source("m.eps", text)).graph
    lines = {node.kind: [place.line for place in node.places] for node in graph.nodes}
    assert lines["expert_gemm_act"] == [3, 4] and lines["unpermute_sum"] == [5, 6]
    assert all(node.places for node in graph.nodes)


@pytest.mark.parametrize("evil", ["\r import os", "\x0c\x1b[31m", "\u2028import os", "x" * 5000, '"""', "\\N{DASH}"])
def test_what_a_comment_holds_is_never_code(evil: str) -> None:
    text = LAYER.format(first=f"# m.py:1: {evil}", second=f"# {evil.replace(' ', '')}.py:2")
    made = driver.write(driver.plan(driver.understand(Source("m.eps", text)))).text
    assert "# From m.py:1: " in made
    body = made[made.index("from __future__") :]
    assert body.isascii() and not set(body) & set("\r\x0c\x1b")
    assert max(len(line) for line in body.splitlines() if "# From" in line) <= 110
    compile(made, "m.py", "exec")
