"""Make the pictures of the docs: `python -m tests.render.screenshots`, where there is a Chromium.

The same page and the same browser as in the tests.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from epsc import driver
from epsc.commands.pictures import html
from epsc.ir.source import Source
from epsc.machine.simulate import simulate
from epsc.render.svg import reason, timeline_svg
from tests.render.browser import browser

ROOT = Path(__file__).parents[2]
WIDTH = 1280


def main() -> None:
    options = driver.Options(defines={"tokens": "4096"})
    name = "examples/deepseek_v2.eps"
    layer = driver.understand(Source(name, (ROOT / name).read_text(encoding="utf-8")), options)
    plans = [driver.plan(layer, name) for name in ("eps", "serial")]
    text = html(plans)
    timeline = simulate(plans[0].schedule, layer.cluster, layer.load[1])
    picture = timeline_svg(timeline, why=reason(timeline, plans[0].schedule))
    (ROOT / "docs/images/timeline.svg").write_text(picture + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, browser() as started:
        path = Path(folder) / "page.html"
        path.write_text(text, encoding="utf-8")
        (Path(folder) / "skewed.html").write_text(html(plans[:1], skew=1.5), encoding="utf-8")
        for shown, scheme, step, name in (
            ("page.html", "light", None, "page-light"),
            ("page.html", "dark", "sent[expert_group:2/5]", "page-dark"),
            ("skewed.html", "light", None, "page-skewed"),
        ):
            page = started.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme=scheme)
            page.goto(path.with_name(shown).as_uri())
            page.wait_for_selector("body[data-ready]")
            if step:
                page.evaluate("(key) => epsc.select(0, epsc.state.sides[0].byKey.get(key), null)", step)
                page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            page.screenshot(path=ROOT / f"docs/images/{name}.png")
            print(f"wrote docs/images/{name}.png")


if __name__ == "__main__":
    main()
