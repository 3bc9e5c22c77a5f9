"""The page of a selection, from the files that one leaves, with hostile texts; in Chromium, wide and narrow."""

import json

import pytest

from align.report.selection import build_page
from tests.align.report.test_build import Page, plots

EVIL = (
    "</div><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\" onmouseover=\"window.hacked = 1"
)


def row(number, **keys):
    told = {"row": number, "cluster": 0, "quality": 1.5, "difficulty": None, "worth": 0.4, "nearest": 1}
    told |= {"cosine": 0.97, "kept": True, "reason": "", "category": "maths", "source": "a.jsonl"}
    return told | {"prompt": f"prompt {number}", "reply": "wide" * 300} | keys


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve rows: six kept, one dropped as the duplicate of another, five over the budget."""
    place = tmp_path_factory.mktemp("selection")
    bins = {"edges": [0.0, 0.5, 1.0], "kept": [2, 4], "dropped": [4, 2]}
    figures = {"rows": 12, "kept": 6, "dropped": {"semantic duplicate": 1, "over the budget": 5}, "clusters": 2}
    figures |= {"embedded_by": "hashed TF-IDF", "mean_quality": 1.0, "mean_quality_kept": 2.0, "without_quality": 3}
    settings = {"keep": 0.5, "spread": "even", "quality": {"kind": "reward", "model_from": EVIL, "batch_size": None}}
    settings |= {"difficulty": None, "clustering": "kmeans", "max_cosine": 0.95, "seed": 4, "random": False}
    told = {"figures": figures, "made_with": {"selection": settings}}
    told["groups"] = {"category": {"maths": [8, 4], EVIL: [4, 2]}}
    sizes = {"rows": [8, 4], "kept": [4, 2]}
    told["distributions"] = {"quality": bins, "cosine": bins, "clusters": sizes}
    (place / "summary.json").write_text(json.dumps(told))
    dropped = row(7, kept=False, reason="semantic duplicate", prompt=EVIL, reply="")
    beside = {f"beside_{key}": value for key, value in row(1).items()}
    examples = [{"list": "kept", **row(1, nearest=None, cosine=None)}, {"list": "kept", **row(2)}]
    examples += [{"list": "dropped", **dropped}, {"list": "duplicates", **dropped, **beside}]
    (place / "examples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in examples))
    return place


def test_it_says_what_was_kept_what_was_dropped_and_why(folder):
    page = build_page(folder, "half.jsonl")
    found = Page(page)
    assert "6 of 12 rows kept." in found.text and "semantic duplicate 1 8.3 %" in found.text
    assert "keep 0.5 · spread even · quality by reward · embedded by hashed TF-IDF · 2 clusters by kmeans" in found.text
    assert "quality 1 2 3" in found.text and "maths 8 4 50.0 %" in found.text
    assert plots(page) == ["quality", "nearest row before it", "clusters, the largest first"]
    assert "row 7 · cluster 0 · quality 1.5 · worth 0.40 · cosine 0.970 to row 1" in found.text.replace(" · ", " · ")
    assert "script" not in found.tags and "img" not in found.tags
    assert [link for link in found.links if not link.startswith(("#", "data:"))] == []


@pytest.mark.needs("playwright")
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_is_quiet(browser, folder, width, theme):
    page_file = build_page(folder, EVIL)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page, wrong, asked = context.new_page(), [], []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 17)"
    assert dark == (theme == "dark") and wrong == [] and len(asked) == 1
    kept, dropped = (page.locator("#rows .side").nth(at).bounding_box() for at in (0, 1))
    assert (kept["y"] == dropped["y"]) == (width == 1400)  # side by side, or one below the other
    assert page.evaluate("window.hacked") is None
    links = page.eval_on_selector_all("nav a", "all => all.map(a => a.getAttribute('href'))")
    assert [link for link in links if page.locator(f"[id='{link[1:]}']").count() != 1] == []
    context.close()
