"""Words of a spec become names, comments and strings that mean nothing else."""

import ast
import io
import keyword
import tokenize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epsc.codegen.names import Names, class_name, comment_lines, identifier, string
from epsc.ir.errors import EpsError

HOSTILE = [
    'a"b',
    "a b",
    "x;import os",
    "a\nb",
    "",
    ".",
    "a..b",
    "a.",
    "1a",
    "é",
    "ａ",
    "a-b",
    "x#",
    "x\\",
    "__import__('os')",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(EpsError, match="cannot be a name"):
        identifier(text)


def test_dots_become_underscores() -> None:
    assert identifier("layers.0.sent") == "layers_0_sent"


def test_names_differ_and_stay() -> None:
    names = Names(["torch"])
    assert names.of("a.b") == "a_b"
    assert names.of("a_b") == "a_b_2"
    assert names.of("a.b") == "a_b"
    assert names.of("torch") == "torch_2"
    assert names.of("return") == "return_"
    assert names.of("list") == "list_"


@given(st.lists(st.from_regex(r"[a-z_][a-z0-9_]{0,3}(\.[a-z0-9_]{1,3}){0,2}", fullmatch=True), unique=True))
def test_different_keys_get_different_usable_names(keys: list[str]) -> None:
    names = Names()
    given = [names.of(key) for key in keys]
    assert len(set(given)) == len(given)
    assert all(name.isidentifier() and not keyword.iskeyword(name) for name in given)


@pytest.mark.parametrize(
    ("text", "name"),
    [("deepseek_v2", "DeepseekV2"), ("a.b", "AB"), ("_", "Layer"), ("_1", "Layer1"), ("none", "NoneLayer")],
)
def test_class_names(text: str, name: str) -> None:
    assert class_name(text) == name


@given(st.text())
def test_any_text_is_only_comments(text: str) -> None:
    source = "\n".join(comment_lines(text))
    kinds = {token.type for token in tokenize.generate_tokens(io.StringIO(source).readline)}
    assert kinds <= {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}
    assert source.isascii()
    assert ast.parse(source).body == []


@given(st.text())
def test_strings_are_what_they_were(text: str) -> None:
    written = string(text)
    assert ast.literal_eval(written) == text
    assert written.isascii()
    assert "\n" not in written
