"""Break proven schedules in every way that `mutations` knows: the proof must object, every time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from random import Random

import pytest

from epsc.ir.errors import EpsError
from epsc.proof.verify import prove
from tests.proof.mutations import MUTATORS, Mutant, Mutator, remove_wait, shuffled, unsynced
from tests.proof.schedules import Made, example_schedules, random_schedules

RANDOM_SCHEDULES = 220
# Mutants of each way and schedule that the quick run tries, and the slow one for random schedules.
EXAMPLE_SAMPLE = 3
RANDOM_SAMPLE = 1
SLOW_SAMPLE = 16


def check(made: Made, mutator: Mutator, mutant: Mutant) -> None:
    """Fail unless the proof refuses the mutant, and says why."""
    what, broken, others = mutant
    try:
        prove(broken, others)
    except EpsError as error:
        codes = {d.code for d in error.diagnostics}
        if codes & MUTATORS[mutator]:
            return
        pytest.fail(f"{mutator.__name__}: {what}: refused, but for another reason\n{error}\n{made.origin}")
    pytest.fail(f"{mutator.__name__}: {what}: the proof has no objection\n{made.origin}\n{broken}")


def run_all(schedules: Iterable[Made], sample: int | None, seed: int = 1) -> Counter[str]:
    """How many mutants of each way were refused."""
    random, counts = Random(seed), Counter[str]()
    for made in schedules:
        for mutator in MUTATORS:
            for mutant in islice(mutator(made.schedule, shuffled(random)), sample):
                check(made, mutator, mutant)
                counts[mutator.__name__] += 1
    return counts


def report(capsys: pytest.CaptureFixture[str], title: str, counts: Counter[str]) -> None:
    with capsys.disabled():
        ways = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
        print(f"\n{title}: {counts.total():,} mutations, all caught ({ways})")


def test_a_mutation_of_any_example_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    schedules = example_schedules()
    assert len(schedules) == 8 * 4 * 2 * 2
    counts = run_all(schedules, EXAMPLE_SAMPLE)
    report(capsys, f"{len(schedules)} schedules of examples", counts)
    assert counts.total() >= 6000
    assert all(counts[mutator.__name__] for mutator in MUTATORS)


def test_a_mutation_of_any_random_schedule_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    schedules = random_schedules(RANDOM_SCHEDULES)
    counts = run_all(schedules, RANDOM_SAMPLE)
    report(capsys, f"{len(schedules)} random schedules", counts)
    kinds = {node.kind for made in schedules for node in made.schedule.graph.nodes}
    assert {"put_sums", "put_back", "expert_gemm_put"} <= kinds
    assert counts.total() >= 3600
    assert all(counts[mutator.__name__] for mutator in MUTATORS)


def test_every_wait_is_needed_before_memory_is_given_out() -> None:
    """Without buffers only values can race: each wait must be needed for them alone."""
    count, sites = 0, shuffled(Random(2))
    for made in (*example_schedules(), *random_schedules(RANDOM_SCHEDULES)):
        for what, broken, _ in islice(remove_wait(unsynced(made.schedule), sites), RANDOM_SAMPLE):
            with pytest.raises(EpsError) as caught:
                prove(broken)
            codes = {d.code for d in caught.value.diagnostics}
            # What this rank waits for may be what heard of the others.
            assert "race" in codes, f"{what}\n{made.origin}"
            assert codes <= {"race", "unsignalled", "overrun"}, f"{what}\n{made.origin}"
            count += 1
    assert count >= 250


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_mutation_of_every_example_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    """Without sampling."""
    counts = run_all(example_schedules(), None)
    report(capsys, "every mutation of the examples", counts)
    assert counts.total() >= 50_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_mutations_of_random_schedules_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    """All would take an hour: they grow with the square of the number of steps."""
    counts = run_all(random_schedules(RANDOM_SCHEDULES), SLOW_SAMPLE)
    report(capsys, f"{RANDOM_SCHEDULES} random schedules", counts)
    assert counts.total() >= 40_000
