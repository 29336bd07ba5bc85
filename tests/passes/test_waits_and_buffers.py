"""synchronise and buffers: a wait for each race, and memory that is shared by what cannot meet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epsc.ir.errors import EpsError
from epsc.ir.schedule import Hazard
from epsc.proof.verify import prove
from tests.passes.block import decided, place


def test_one_lane_waits_for_nothing_but_the_counts() -> None:
    waits = [(step.key, wait.step) for step in decided().steps for wait in step.waits]
    assert waits == [("sent.sizes", "sent.exchange")]


def test_each_wait_says_what_it_guards() -> None:
    made = decided("split sent, h, back by expert_group into 2")
    first = made.step["sent[expert_group:0/2]"].waits
    assert [(w.step, w.value, w.hazard) for w in first] == [
        ("sent.all2all[expert_group:0/2]", "sent.all2all", Hazard.RAW)
    ]


def test_no_wait_is_more_than_a_race_needs() -> None:
    made = decided("split sent, h, back by expert_group into 5  run mlp beside sent  run down on second")
    assert len([w for step in made.steps for w in step.waits]) >= 12
    for i, step in enumerate(made.steps):
        for wait in step.waits:
            less = replace(step, waits=tuple(w for w in step.waits if w is not wait))
            with pytest.raises(EpsError, match=f"make `.*` wait for `{wait.step.split('[')[0]}"):
                prove(made.with_steps((*made.steps[:i], less, *made.steps[i + 1 :])))


SHARING = (
    "",
    "split sent, h, back by expert_group into 5",
    "split sent, h, back by tokens into 3  run mlp beside sent",
    "run down on second  split sent, h, back by expert_group into 2",
)


@pytest.mark.parametrize("directives", SHARING)
def test_sharing_memory_adds_no_wait(directives: str) -> None:
    shared, apart = decided(directives), decided(directives, "buffers{share=false}")
    assert shared.steps == apart.steps
    assert len(shared.storages) < len(apart.storages) == len(apart.buffers) == len(shared.buffers)


@pytest.mark.parametrize("directives", SHARING)
def test_a_result_has_memory_of_its_own(directives: str) -> None:
    made = decided(directives)
    homes = [buffer.storage for buffer in made.buffers]
    results = [buffer for buffer in made.buffers if buffer.value in made.graph.results]
    assert len(results) == 1 and homes.count(results[0].storage) == 1


def test_chunks_follow_each_other_through_the_same_memory() -> None:
    few, many = (decided(f"split sent, h, back by expert_group into {n}") for n in (2, 5))
    assert len(many.storages) <= len(few.storages) + 1


def test_what_an_index_addresses_is_in_one_piece() -> None:
    made = decided("split sent, h, back by expert_group into 5")
    whole = {buffer.value for buffer in made.buffers if not buffer.cuts}
    assert {"sent.permute", "sent.all2all", "back.ungroup", "back.all2all"} <= whole
    assert "up" not in whole


def test_no_buffer_takes_memory_before_its_size_is_known() -> None:
    made = decided()
    known = place(made, "sent.sizes")
    first = {b.storage: place(made, b.key) for b in reversed(made.buffers)}
    early = [s for s in made.storages if first[s.name] < known]
    assert early and not [size for s in early for size in s.sizes if size.symbol == "rows(sent)"]
