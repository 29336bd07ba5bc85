"""Both grammars for editors know the words of the language, and lose no letter of a file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from epsc.ir.dims import DType

pygments = pytest.importorskip("pygments", reason="pygments is not installed")

from pygments.lexers import get_lexer_by_name  # noqa: E402
from pygments.token import Comment, Error, Keyword, Name, Number, Operator, Token  # noqa: E402

from epsc.editor.lexer import EpsLexer  # noqa: E402

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "examples").glob("*.eps")), ROOT / "tests/cases/grammar/every_construct.eps"]
WORDS = set(re.findall(r'"([a-z_]+)"', re.sub(r"//.*", "", (ROOT / "grammar/eps.lark").read_text())))
TEXTMATE = json.loads((ROOT / "epsc/editor/eps.tmLanguage.json").read_text())


def lexed(text: str) -> list[tuple[Any, str]]:
    return [(kind, piece) for kind, piece in EpsLexer(stripnl=False, ensurenl=False).get_tokens(text) if piece.strip()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_is_lost_and_nothing_is_wrong(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tokens = list(EpsLexer(stripnl=False, ensurenl=False).get_tokens(text))
    assert "".join(piece for _, piece in tokens) == text
    assert not [piece for kind, piece in tokens if kind is Error]
    # A word that the lexer had no rule for in its place would be plain text.
    assert not [piece for kind, piece in tokens if kind is Token.Text and piece.strip()]


def test_words_have_their_kinds() -> None:
    text = """let groups = 5  # five
layer moe(x: bf16[tokens, 2*64]) {
  by = gemm(x, w, out=4)
  return by
}
cluster box { ep = 2 }
tokens 1 .. 2
schedule cut { split by by tokens into groups use dense for by when rows < 1.5 else grouped }
schedule best = auto
schedule serving = decode when tokens <= five // 2 else auto
schedule found = auto by tokens
"""
    found = lexed(text)
    for kind, piece in [
        (Keyword.Declaration, "let"),
        (Comment.Single, "# five"),
        (Keyword.Declaration, "layer"),
        (Name.Function, "moe"),
        (Keyword.Type, "bf16"),
        (Number.Integer, "64"),
        (Name, "by"),  # a name in a layer, and a word in a schedule
        (Keyword.Reserved, "by"),
        (Name.Function, "gemm"),
        (Name.Attribute, "out"),
        (Keyword, "return"),
        (Name.Attribute, "ep"),
        (Operator, ".."),
        (Keyword, "split"),
        (Keyword.Reserved, "when"),
        (Number.Float, "1.5"),
        (Keyword, "auto"),
        (Name.Class, "decode"),
        (Name, "five"),
        (Keyword.Reserved, "else"),
    ]:
        assert (kind, piece) in found


def test_the_lexer_knows_every_word_of_the_grammar() -> None:
    assert {"split", "layer", "auto", "local_reduce"} <= WORDS
    known = {word for word in WORDS if any(kind in Keyword for kind in kinds(word))}
    assert known == WORDS


def kinds(word: str) -> list[Any]:
    """What a word is where the language may have it."""
    places = [f"{word} a", f"layer a(x) {{ {word} x }}", f"schedule a {{ {word} a }}", f"schedule a = {word}"]
    return [kind for text in places for kind, piece in lexed(text) if piece == word]


def patterns(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if {"match", "begin"} & node.keys():
            yield node
        for value in node.values():
            yield from patterns(value)
    elif isinstance(node, list):
        for value in node:
            yield from patterns(value)


def test_textmate_knows_every_word_and_type() -> None:
    found = list(patterns(TEXTMATE))
    texts = [node.get("match", "") + node.get("begin", "") for node in found]
    said = set(re.findall(r"[a-z_][a-z0-9_]+", " ".join(texts).replace(r"\b", " ")))
    assert set(DType) | WORDS <= said
    for node in found:
        for key in ("match", "begin", "end"):
            re.compile(node.get(key, ""))
    names = {each["include"] for each in json_objects(TEXTMATE) if "include" in each}
    assert names == {f"#{name}" for name in TEXTMATE["repository"]}


def json_objects(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from json_objects(value)


def test_pygments_finds_the_lexer_where_epsc_is_installed() -> None:
    from importlib.metadata import entry_points

    if not [each for each in entry_points(group="pygments.lexers") if each.name == "eps"]:
        pytest.skip("this environment was made before the entry point: install epsc again")
    assert isinstance(get_lexer_by_name("eps"), EpsLexer)
