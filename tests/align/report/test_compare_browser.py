"""The page of several runs in a browser, wide and narrow, light and dark."""

import json

import pytest

from align.report.compare import build_comparison
from tests.align.report.synthetic_run import make_run, write

pytestmark = pytest.mark.needs("playwright")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    names = ("a-run-with-a-name-that-is-rather-long-and-has-no-space-in-it", "b", "c")
    roots = [make_run(folder / name, prompts=4, iterations=6, pairs=4) for name in names]
    summary = json.loads((roots[1] / "ppo/summary.json").read_text())
    write(roots[1] / "ppo/summary.json", summary | {"judged_by": 300 * "j"})
    return build_comparison(roots)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 390])
def test_it_fits_and_follows_the_readers_colours(browser, index, width):
    colors = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page, said = context.new_page(), []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on(
            "request",
            lambda asked, said=said: None if asked.url.startswith(("file:", "data:")) else said.append(asked.url),
        )
        page.goto(index.as_uri())
        assert said == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        boxes = page.evaluate(
            "[...document.querySelectorAll('figure > svg')].map(s => s.getBoundingClientRect().toJSON())"
        )
        assert len(boxes) == 19 and all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        assert len({round(box["x"]) for box in boxes}) == (3 if width == 1400 else 1)
        sizes = page.evaluate(
            "[...document.querySelectorAll('figure > svg text')].map(t => t.getBoundingClientRect().height)"
        )
        assert min(sizes) > 9  # readable
        colors[scheme] = page.evaluate(
            "[...document.querySelectorAll('figure > svg path')].map(p => getComputedStyle(p).stroke)"
        )
        context.close()
    assert len(set(colors["light"])) > 3 and not set(colors["light"]) & set(colors["dark"]) - {"none"}
