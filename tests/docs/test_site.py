"""The documentation as a site: it builds without a warning, which says that every link and anchor leads somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from epsc.render.amounts import duration
from tests.docs.pages import ROOT

pytest.importorskip("mkdocs", reason="mkdocs-material is not installed")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")

from docs.site import gallery, hooks, reference

SHOWN = "examples/papers/tutel.eps"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it, with one file in the gallery: all of them take more than a minute."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {ROOT / 'docs'}\nsite_dir: site\n"
        f"hooks: [{ROOT / 'docs/site/hooks.py'}]\nextra: {{gallery: [{SHOWN}], reference: [epsc.machine]}}\n"
    )
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", str(folder / "mkdocs.yml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_it_builds_and_asks_nothing_of_a_network(site: Path) -> None:
    pages = {str(path.relative_to(site)): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    said = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {"index.html", "contributing.html", "changelog.html", "gallery/tutel.html"} <= pages.keys()
    assert {each for each in said if not each.endswith("README.html")} <= pages.keys()
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=\"?(https?:[^\" >]*)", text)
        loaded += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preconnect|preload)[^>]*href=\"?(https?:[^\" >]*)", text)
        assert loaded == [], name


def test_blocks_have_the_colours_of_our_lexer(site: Path) -> None:
    for name in ("language.html", "gallery/tutel.html", "index.html"):
        text = (site / name).read_text(encoding="utf-8")
        assert re.search(r'<span class="kd?">layer</span>', text), name
    assert "```" not in (site / "language.html").read_text(encoding="utf-8"), "no fence was left as it stands"


def test_the_gallery_shows_what_it_is_and_what_it_takes(site: Path) -> None:
    text = (site / "gallery/tutel.html").read_text(encoding="utf-8")
    assert "https://arxiv.org/abs/2206.03382" in text
    assert text.index("What runs when") < text.index('class="kd'), "the picture comes before the text"
    runs, _ = gallery.entries([SHOWN])[0].runs()
    best = min(runs, key=lambda run: run.timeline.total)
    assert f"<code>{best.name}</code> is the fastest: {duration(best.timeline.total)}" in text
    light, dark = ((site / f"gallery/tutel{theme}.svg").read_text(encoding="utf-8") for theme in ("", "-dark"))
    assert light.count("<rect") == dark.count("<rect") and "height='100%' fill='#fff'" in light
    assert "height='100%' fill='#fff'" not in dark
    assert 'src="tutel.svg#only-light"' in text and 'src="tutel-dark.svg#only-dark"' in text
    rows = {tuple(re.findall(r"<td>(.*?)</td>", row)[:2]) for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)}
    assert {("DeepSeek-V2", "h200x8"), ("Mixtral-8x7B", "h100x8"), ("its own", "h200x8")} <= rows
    assert "DeepSeek-V2 on h100x64_nodes8" in text and "160 experts cannot be shared evenly" in text


def test_the_reference_has_what_can_be_imported(site: Path) -> None:
    index = (site / "reference/index.html").read_text(encoding="utf-8")
    for name in ("compile", "trace", "compile_model"):
        assert re.search(rf'id="epsc\.\w+\.\w+\.{name}"', index), name
    assert 'id="epsc.machine.timeline.Timeline"' in (site / "reference/epsc.machine.html").read_text(encoding="utf-8")


def test_every_example_says_what_it_is() -> None:
    """Its first comment is its page's title and text; a paper's names the paper."""
    found = gallery.entries(["examples/*.eps", "examples/papers/*.eps"])
    assert len({each.title for each in found}) == len({each.name for each in found}) == len(found) > 10
    for each in found:
        assert each.comment, each.place
        assert each.path.parent == gallery.EXAMPLES or re.search(r"https://|\b20\d\d\b", each.about), each.place
        assert not each.text.startswith("#")


def test_numbers_are_those_of_the_commands() -> None:
    from click.testing import CliRunner

    from epsc.cli import cli

    (entry,) = gallery.entries([SHOWN])
    runs, refused = entry.runs(None, gallery.SHAPES["DeepSeek-V2"])
    on = str(gallery.EXAMPLES / gallery.SHAPES["DeepSeek-V2"])
    told = CliRunner().invoke(cli, ["compare", str(entry.path), "--on", on, "-D", f"tokens={gallery.TOKENS}", "--json"])
    assert refused == []
    assert {run.name: run.timeline.total for run in runs} == {
        each["name"]: each["seconds"] for each in json.loads(told.stdout)["schedules"]
    }


def test_pages_beside_the_folder_link_from_inside() -> None:
    text = "[a](docs/proof.md#what) [b](CONTRIBUTING.md) [c](https://example.org/docs/x.md)"
    assert hooks.from_root(text) == "[a](proof.md#what) [b](contributing.md) [c](https://example.org/docs/x.md)"


def test_the_reference_is_of_modules_that_are_there() -> None:
    named = dict(reference.files(["epsc.machine", "epsc.driver"]))
    assert "::: epsc.machine.timeline" in named["reference/epsc.machine.md"]
    assert "::: epsc.driver" in named["reference/epsc.driver.md"]
