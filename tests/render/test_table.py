from epsc.machine.cluster import Cluster
from epsc.machine.simulate import simulate
from epsc.render.amounts import amount, duration
from epsc.render.table import aligned, graph_table, schedule_table
from tests.machine.schedules import eps


def test_columns_line_up_and_numbers_go_right() -> None:
    assert aligned(("#", "step"), [("1", "a"), ("10", "long name")]) == (
        " #  step\n--  ---------\n 1  a\n10  long name"
    )


def test_every_step_is_there_in_order() -> None:
    schedule = eps(5)
    lines = schedule_table(schedule).splitlines()
    assert lines[0] == "eps5: ep 8, 132 SMs, synced"
    assert [line.split()[1] for line in lines[4:]] == [step.key for step in schedule.steps]
    assert "sent.permute (raw), sent.sizes (raw)" in schedule_table(schedule)
    assert "sent.layout (sent.layout.counts raw)" in schedule_table(schedule)


def test_symbols_without_a_timeline_and_numbers_with_one() -> None:
    schedule = eps(5)
    assert "bf16[rows(sent)[expert_group:0/5], 3072]" in schedule_table(schedule)
    assert "grouped when mean_rows < 2048 else dense" in schedule_table(schedule)
    table = schedule_table(schedule, simulate(schedule, Cluster.make("h", "h200", 8), 8192))
    (up,) = (line for line in table.splitlines() if " up[expert_group:0/5] " in line)
    # 9830 rows x 5120 x 3072 x 2 FLOP; weights 126 MB + rows 161 MB; dense from 2048 rows per expert.
    for cell in ("dense", "comp", "116", "9830", "287 MB", "309 G"):
        assert f" {cell} " in up


def test_a_graph_lists_every_op() -> None:
    graph = eps(1).graph
    lines = graph_table(graph).splitlines()
    assert lines[0] == "layer(x: bf16[tokens, 5120]) -> y"
    assert [line.split()[0] for line in lines[4:]] == [node.name for node in graph.nodes]
    assert not any(line.endswith(" ") for line in lines)


def test_amounts_have_three_digits() -> None:
    assert [duration(s) for s in (0, 5e-9, 6.5e-5, 9.996e-4, 0.016, 0.1234, 2)] == [
        "0", "5 ns", "65.0 us", "1000 us", "16.0 ms", "123 ms", "2.00 s",
    ]  # fmt: skip
    assert [amount(v, "B") for v in (0, 12, 1024, 9.999e6, 123456789, 3e12)] == [
        "-", "12 B", "1.02 kB", "10.0 MB", "123 MB", "3.00 TB",
    ]  # fmt: skip
