"""chunk: cuts, and what no layout serves."""

from __future__ import annotations

import pytest

from epsc.ir.dims import Axis
from tests.passes.block import decided, keys, refusal


def test_chunks_of_expert_groups_cut_what_lies_between_the_transfers() -> None:
    made = decided("split sent, h, back by expert_group into 3")
    cut = {step.node for step in made.steps if step.cuts}
    assert cut == {"sent.all2all", "sent", "h", "down", "back.ungroup", "back.all2all"}
    assert all(len(keys(made, node)) == 3 for node in cut)
    assert str(made.layouts[0]) == "layout sent: expert_group 3"


def test_chunks_of_tokens_cut_the_ends_too() -> None:
    made = decided("split sent, h, back by tokens into 2")
    cut = {step.node for step in made.steps if step.cuts}
    assert {"sent.permute", "return"} <= cut and "sent.arrange" not in cut
    assert str(made.layouts[0]) == "layout sent: tokens 2"


def test_a_chunk_reads_its_part_of_rows_and_the_whole_of_an_index() -> None:
    step = decided("split sent, h, back by expert_group into 2").step["sent[expert_group:1/2]"]
    assert list(map(str, step.reads)) == ["sent.all2all[expert_group:1/2]", "sent.arrange.index"]


def test_one_chunk_is_no_chunk() -> None:
    assert not any(step.cuts for step in decided("split sent, h, back by expert_group into 1").steps)


def test_chunk_options_replace_axis_and_count() -> None:
    made = decided("split sent, h, back by expert_group into 2", "chunk{n=4, axis=tokens}")
    assert (made.layouts[0].axis, made.layouts[0].count) == (Axis.TOKENS, 4)


def test_local_compute_may_be_cut_where_transfers_are_not() -> None:
    made = decided("split h by expert_group into 5")
    assert len(keys(made, "h")) == 5 and len(keys(made, "sent.all2all")) == 1
    assert str(made.layouts[0]) == "layout sent: whole"


@pytest.mark.parametrize(
    ("directives", "passes", "code"),
    [
        ("split sent by expert_group into 2", "", "split-mismatch"),
        ("split sent by expert_group into 2 split back by expert_group into 5", "", "split-mismatch"),
        ("split sent, back by tokens into 2", "", "split-mismatch"),
        ("split h by tokens into 2", "", "split-mismatch"),
        ("split sent, back by expert_group into 5 split h by expert_group into 2", "", "split-mismatch"),
        ("split sent, h, back by expert_group into 6", "", "chunks-over-experts"),
        ("split sent, h, back by expert_group into 2", "chunk{n=6}", "chunks-over-experts"),
        ("split mlp by expert_group into 2", "", "axis"),
        ("split h by columns into 2", "", "axis"),
        ("split down by columns into 2", "", "split-mismatch"),
        ("split back by columns into 3", "", "uneven-chunks"),
        ("split sent by peer into 9", "", "uneven-chunks"),
        ("split down by peer into ep", "", "axis"),
        ("split sent, h, back by expert_group into 2", "chunk{axis=slot}", "axis"),
    ],
)
def test_chunk_refuses_what_no_layout_serves(directives: str, passes: str, code: str) -> None:
    error = refusal(directives, passes)
    assert [d.code for d in error.diagnostics] == [code], error
    assert error.diagnostics[0].help
