"""What holds for whatever the passes make."""

from __future__ import annotations

import cProfile

import pytest
import torch

from epsc import driver
from epsc.interpret import interpret
from epsc.interpret.weights import random_weights
from epsc.ir.dims import TOKENS
from epsc.ir.errors import EpsError
from epsc.ir.graph import Graph
from epsc.ir.schedule import Schedule
from epsc.passes.pipeline import PIPELINE, configured, decide, lower
from epsc.passes.wishes import Context, Wishes
from tests.proof.schedules import EXAMPLES, Made, compiled, draws, example_schedules, random_schedules

RANDOM_SCHEDULES = 220  # as many as the mutations use: they are made once a session


@pytest.fixture(scope="module")
def made() -> tuple[Made, ...]:
    return (*example_schedules(), *random_schedules(RANDOM_SCHEDULES))


def test_a_schedule_reads_back_what_it_prints(made: tuple[Made, ...]) -> None:
    for each in made[::3]:
        text = str(each.schedule)
        again = Schedule.parse(text)
        assert again == each.schedule, each.origin
        assert str(again) == text


def test_a_graph_reads_back_what_it_prints(made: tuple[Made, ...]) -> None:
    for each in made[1::3]:
        for graph in (each.plan.layer.said, each.plan.layer.graph):
            assert Graph.parse(str(graph)) == graph, each.origin


class _Watch:
    """Reads back whatever a pass made."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, name: str, noun: Graph | Schedule, seconds: float) -> None:
        assert type(noun).parse(str(noun)) == noun, name
        self.seen.append(name)


def test_every_stage_reads_back_what_it_prints() -> None:
    for text, passes in draws(25, seed=7):
        watch = _Watch()
        options = driver.Options(pipeline=configured(passes), watch=watch)
        try:
            driver.plan(driver.understand(driver.Source("test.eps", text), options))
        except EpsError:
            continue
        assert watch.seen == [each.name for each in PIPELINE]


def test_the_same_input_gives_the_same_text() -> None:
    for text, passes in draws(40, seed=11):
        try:
            first = str(compiled(text, passes).schedule)
        except EpsError as error:
            with pytest.raises(EpsError) as again:
                compiled(text, passes)
            assert str(again.value) == str(error)
            continue
        assert str(compiled(text, passes).schedule) == first


def test_what_a_file_may_ask_for_never_breaks_a_pass() -> None:
    """A file may ask for the impossible, and is told so; but no pass makes what the proof then refuses."""
    refused = 0
    for text, passes in draws(80, seed=13):
        try:
            compiled(text, passes)
        except EpsError as error:
            refused += 1
            assert not [d for d in error.diagnostics if "after pass" in d.message], f"{error}\n-p '{passes}'\n{text}"
            assert all(d.span for d in error.diagnostics), str(error)
    assert 0 < refused < 50


# --- meaning ----------------------------------------------------------------------------------------------------------


def agree(said: Graph, *others: Graph) -> None:
    """Fail unless all of the graphs compute the same, in float32, for a few random tokens."""
    weights = random_weights(said, 0, torch.float32)
    width = said.types[said.inputs[0]].shape[1].scale
    x = torch.randn(13, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (expected,) = interpret(said, {said.inputs[0]: x}, weights)
        assert expected.shape[0] == 13 and said.types[said.results[0]].shape[0] == TOKENS
        for other in others:
            (got,) = interpret(other, {other.inputs[0]: x}, weights)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_lowering_an_example_keeps_its_meaning(path: driver.Path) -> None:
    layer = driver.understand(driver.read(path), driver.Options({"ep": "1"}, preset="small"))
    agree(layer.said, layer.graph, lower(layer.said, configured("fuse{sums=false, epilogue=false}")))


def test_lowering_a_random_layer_keeps_its_meaning() -> None:
    for text, _ in draws(12, seed=17):
        source = driver.Source("test.eps", text[: text.index("schedule s")])
        layer = driver.understand(source)
        agree(layer.said, layer.graph, lower(layer.said, configured("fuse{sums=false, epilogue=false}")))


@pytest.mark.parametrize("there", ["use put for sent", "use put for sent dedup sent", "use copy for sent"])
@pytest.mark.parametrize("home", ["use put for back", "use put for back local_reduce back"])
def test_lowering_to_one_sided_transfers_keeps_the_meaning(there: str, home: str) -> None:
    text = STACK.format(depth=2)
    for directives in (f"{there} {home}", f"{there} {home} room 2 for sent"):
        source = driver.Source("test.eps", f"{text[: text.index('schedule s')]}schedule s {{ {directives} }}")
        layer = driver.understand(source)
        lowered = driver.lowered(layer, layer.schedules[0])
        assert not {"dispatch", "combine", "all2all"} & {node.kind for node in lowered.nodes}
        sums = [node for node in lowered.nodes if node.kind in ("sum_copies", "sum_ranks")]
        assert [len(node.ins) for node in sums] == [3, 3]  # they start from the shared experts
        agree(layer.said, lowered)


# --- compile time -----------------------------------------------------------------------------------------------------

STACK = """
layer block(x: bf16[tokens, 64]) {{
  r    = route(x, experts=16, top_k=2)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, up, 64))
  back = combine(gemm(h, down, 64), r)
  return back + mlp(x, swiglu, 64) + x
}}
layer model(x: bf16[tokens, 64]) {{ return stack(block, x, {depth}) }}
cluster c {{ ep = 2 }}
schedule s {{
  split sent, h, back by expert_group into 2
  reserve 16 sms for sent, back
  run mlp beside sent
}}
"""


def work(depth: int) -> tuple[int, int, int]:
    """Function calls that it takes to decide and prove the schedule of a stack; its steps; its storages."""
    layer = driver.understand(driver.Source("test.eps", STACK.format(depth=depth)))
    profile = cProfile.Profile()
    plan = profile.runcall(driver.plan, layer)
    calls = sum(entry.callcount for entry in profile.getstats())  # type: ignore[attr-defined]
    return calls, len(plan.schedule.steps), len(plan.schedule.storages)


def test_compiling_a_stack_is_linear_in_its_depth() -> None:
    """Counted in calls of Python functions, so that a busy machine changes nothing."""
    found = {depth: work(depth) for depth in (8, 16, 32, 64)}
    for depth in (8, 16, 32):
        (calls, steps, storages), (twice, double, same) = found[depth], found[2 * depth]
        assert double / steps == pytest.approx(2, rel=0.05)
        assert twice / calls < 2.3, found
        # Rows of the next layer are not counted yet when this one takes its memory, so each has some of its own.
        assert same - storages <= 4 * depth


def test_an_empty_schedule_is_one_lane() -> None:
    """No wish, no overlap: everything in order on one stream, with the host as the only other lane."""
    layer = driver.understand(driver.read(EXAMPLES[0]))
    decision = decide(layer.graph, Context(Wishes("nothing"), 4, 132))
    assert {lane.name for lane in decision.schedule.lanes} == {"compute", "host"}
    assert {wait.step for step in decision.schedule.steps for wait in step.waits} == {"sent.exchange"}
