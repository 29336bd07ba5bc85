import re

from epsc.render.dot import graph_dot, quoted, schedule_dot
from tests.machine.schedules import eps

STRING = r'"(?:[^"\\\n]|\\.)*"'
STATEMENT = re.compile(
    rf"digraph {STRING} {{|subgraph \w+ {{|}}|label={STRING}|(node|edge|{STRING}( -> {STRING})?)( \[.*\])?"
)


def test_names_are_escaped() -> None:
    assert quoted('a "b" \\ c\nd') == r'"a \"b\" \\ c\nd"'


def test_every_line_is_a_dot_statement() -> None:
    schedule = eps(5)
    for text in (graph_dot(schedule.graph), schedule_dot(schedule)):
        for line in text.splitlines():
            assert STATEMENT.fullmatch(line.strip()), line
        assert text.count("{") == text.count("}")


def test_the_graph_has_its_edges() -> None:
    text = graph_dot(eps(1).graph)
    assert '"sent" -> "up" [label="sent\\nbf16[rows(sent), 5120]"]' in text
    assert '"in:x" -> "r"' in text
    assert '"y" -> "out:y"' in text


def test_the_schedule_has_lanes_and_reasons() -> None:
    schedule = eps(2)
    text = schedule_dot(schedule)
    assert text.count("subgraph") == 3
    assert text.count("style=dashed") == sum(len(step.waits) for step in schedule.steps)
    assert '"sent.all2all[expert_group:0/2]" -> "sent[expert_group:0/2]" [label="sent.all2all raw"' in text
