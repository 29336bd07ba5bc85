"""Every example, under every schedule, on 2 and 4 ranks, and some on 8, equals the interpreter in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from epsc import driver
from tests.programs.ranks import Job, Ranks

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.eps"))
LIMIT = 1e-5
SCHEDULES = ("serial", "eps", "capacity", "one_sided", "best")
ON_EIGHT = {"deepseek_v3": 2, "mixtral_8x7b": 1}
"""Example -> groups of a rank's experts: four of them, and one."""


def tokens_for(count: int) -> list[tuple[tuple[int, ...], str]]:
    """Loads per rank, with a routing: even; uneven, with an empty rank; one token in all; and badly balanced ones."""
    return [
        ((24,) * count, "random"),
        (tuple(7 * rank for rank in range(count)), "random"),
        ((1,) + (0,) * (count - 1), "random"),
        ((9,) * count, "one"),
        (tuple(3 + rank for rank in range(count)), "shunned"),
        ((16,) * count, "skewed"),
    ]


@pytest.mark.distributed
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_schedule_equals_the_interpreter(
    path: Path, count: int, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    layer = driver.understand(driver.read(path), driver.Options({"ep": str(count)}, preset="small"))
    equals_the_interpreter(layer, ranks_of(count), prepare)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ON_EIGHT)
def test_eight_ranks_equal_the_interpreter(
    name: str, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    given = driver.Options({"ep": "8", "groups": str(ON_EIGHT[name])}, preset="small")
    (path,) = (path for path in EXAMPLES if path.stem == name)
    equals_the_interpreter(driver.understand(driver.read(path), given), ranks_of(8), prepare)


def equals_the_interpreter(layer: driver.Layer, ranks: Ranks, prepare: Callable[..., Job]) -> None:
    for schedule in SCHEDULES:
        for seed, (tokens, routing) in enumerate(tokens_for(ranks.count)):
            results = ranks.run(prepare(layer, schedule, tokens, routing=routing, seed=seed))
            worst = max(result.error for result in results)
            assert worst < LIMIT, f"{schedule}, tokens {tokens}, {routing} routing: {worst:.2e}"


@pytest.mark.distributed
def test_a_wrong_program_is_noticed(
    tmp_path: Path, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    """The comparison can fail: a program whose sum forgets the shared experts does."""
    layer = driver.understand(driver.read(EXAMPLES[1]), driver.Options({"ep": "2"}, preset="small"))
    job = prepare(layer, "serial", (8, 8))
    text = Path(job.program).read_text()
    broken = text.replace("r_weights, return_, mlp)", "r_weights, return_)")
    assert broken != text
    path = tmp_path / "broken.py"
    path.write_text(broken)
    results = ranks_of(2).run(Job(str(path), job.graph, (8, 8)))
    assert max(result.error for result in results) > LIMIT


@pytest.mark.distributed
def test_a_hang_names_the_step_of_every_rank(
    tmp_path: Path,
    ranks_of: Callable[[int], Ranks],
    prepare: Callable[..., Job],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A rank that leaves out a transfer hangs the others: the report says where each of them is."""
    layer = driver.understand(driver.read(EXAMPLES[1]), driver.Options({"ep": "2"}, preset="small"))
    job = prepare(layer, "serial", (8, 8))
    text = Path(job.program).read_text()
    head = "    def forward(self, x: Tensor) -> Tensor:\n"
    nap = "        if self.rank == 1:\n            self.run.at = 'a nap'\n            time.sleep(60)\n"
    broken = text.replace(head, head + nap)
    assert broken != text
    path = tmp_path / "hangs.py"
    path.write_text(broken)
    ranks = Ranks(2, tmp_path_factory.mktemp("hang"))
    try:
        with pytest.raises(AssertionError, match=r"rank 0 is at sent\.\w+; rank 1 is at a nap"):
            ranks.run(Job(str(path), job.graph, (8, 8)), limit=12)
    finally:
        ranks.stop()
