"""The page in headless Chromium, wide and narrow, light and dark: what a reader sees, what a hostile run cannot do."""

import json
from collections import Counter

import pytest

from align.report import build_report
from tests.align.report.synthetic_run import make_run, write

pytestmark = pytest.mark.needs("playwright")
WIDTHS, THEMES = (1400, 390), ("light", "dark")
EVIL = (
    "</div><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\" onmouseover=\"window.hacked = 1"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished quickstart whose last reply is hostile and too wide for any screen, as is a figure."""
    root = make_run(tmp_path_factory.mktemp("runs") / "quickstart", prompts=60, iterations=12, pairs=60)
    with (root / "ppo/eval.jsonl").open("a", encoding="utf-8") as file:
        figures = {f"{who}_{name}": 1.0 for who in ("sft", "ppo") for name in ("gold", "correct")}
        said = {"prompt": EVIL, "category": EVIL, "sft_reply": EVIL, "ppo_reply": "wide" * 400 + " 知識"}
        file.write(json.dumps(said | figures) + "\n")
    write(root / "summary.json", {"name": "quickstart", "seed": 0, "gold_range": [-1, 10**300]})
    build_report(root)
    return root


class Opened:
    """A page in one window, with what went wrong on it and what it asked for."""

    def __init__(self, browser, run, width=1400, theme="light", **options):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **options)
        self.page, self.wrong, self.asked = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message) or dialog.dismiss())
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto((run / "report/index.html").as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def shown(self):
        return self.page.locator(".replies .exchange:visible")

    def rows(self, selector):
        """The cells of a table's body."""
        script = "table => [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        return self.page.locator(selector).evaluate(script)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_the_page_fits_and_is_quiet(browser, run, width, theme):
    with Opened(browser, run, width, theme) as opened:
        page = opened.page
        fits = "document.scrollingElement.scrollWidth <= innerWidth"
        assert page.evaluate(fits)
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert page.evaluate(fits), "with everything unfolded"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 17)"
        assert dark == (theme == "dark")
        assert opened.wrong == [] and len(opened.asked) == 1  # the page itself
        links = page.eval_on_selector_all("a", "all => all.map(a => a.getAttribute('href'))")
        assert [link for link in links if page.locator(f"[id='{link[1:]}']").count() != 1] == []
        small = page.eval_on_selector_all("h2, .verdict", "all => all.filter(one => !one.innerText.trim()).length")
        assert small == 0


def test_its_figures_are_those_of_the_summary(browser, run):
    """`summary.json` counts the 60 rows that are not hostile, which the last one ties."""
    summary = json.loads((run / "ppo/summary.json").read_text())
    with Opened(browser, run) as opened:
        sentence = opened.page.locator(".verdict").inner_text()
        glance = {cells[0]: cells[1:] for cells in opened.rows(".glance")}
        greedy, sampled = (opened.rows(f".outcome >> nth={at}") for at in (0, 1))
    assert sentence.startswith(f"PPO won {summary['win']} of 61 against SFT, correct ")
    assert sentence.endswith("judged by the gold score of the embedded world, which training has not seen.")
    lost = f"{summary['loss']} lost"
    assert glance["won, greedy"][0] == f"{summary['win']} of 61, {summary['tie'] + 1} tied, {lost}"
    assert glance["correct, temperature 1"][1] == f"{100 * summary['correct_sampled']:.1f} %"
    assert glance["gold, temperature 1"][1] == f"{summary['gold_sampled']:.4g}"
    gain = summary["correct_gain_sampled"]
    told = " ".join(glance["correct, temperature 1"][2].split())
    assert told == "{:+.1f} points [{:+.1f}, {:+.1f}]".format(
        *(100 * gain[key] for key in ("difference", "low", "high"))
    )
    for rows, suffix, hostile in ((greedy, "", 1), (sampled, "_sampled", 0)):
        _, _, right, manners, *broken, tie, loss, _, _ = rows[0]
        assert int(right) + int(manners) + sum(map(int, broken)) == summary[f"win{suffix}"]
        assert (int(tie), int(loss)) == (summary[f"tie{suffix}"] + hostile, summary[f"loss{suffix}"])
    assert sum(int(row[3]) for row in greedy[1:]) == int(greedy[0][3]) > 0  # won by manners


def test_replies_can_be_chosen_and_ordered(browser, run):
    rows = [json.loads(line) for line in (run / "ppo/eval.jsonl").read_text().splitlines()]
    gains = [row["ppo_gold"] - row["sft_gold"] for row in rows]
    manners = sum(
        gain > 0 and not row["sft_correct"] + row["ppo_correct"] for gain, row in zip(gains, rows, strict=True)
    )
    by_category = Counter(row["category"] for row in rows)
    with Opened(browser, run, 390) as opened:
        page, shown, found = opened.page, opened.shown(), opened.page.locator(".found")
        assert found.inner_text() == "61 of 61" and shown.count() == 20
        page.locator(".more").click()
        page.locator(".more").click()
        assert shown.count() == 60
        page.locator(".more").click()
        assert shown.count() == 61 and not page.locator(".more").is_visible()
        page.select_option("[data-by=kind]", "won-wrong")
        assert found.inner_text() == f"{manners} of 61" and shown.count() == min(manners, 20) > 0
        assert {badge.strip() for badge in shown.locator(".badge").all_inner_texts()} == {
            "PPO won by manners: both wrong"
        }
        page.select_option("[data-by=kind]", "")
        page.select_option("[data-by=category]", "maths")
        assert found.inner_text() == f"{by_category['maths']} of 61"
        page.select_option("[data-by=category]", "")
        for order, best in (("best", max(gains)), ("worst", min(gains))):
            page.select_option(".sort", order)
            assert float(shown.first.get_attribute("data-gain")) == pytest.approx(best)
        page.fill("[type=search]", "cup 17 ")
        assert found.inner_text() == "1 of 61" and "cup 17 " in shown.inner_text()
        page.select_option("[data-by=category]", index=1)  # the hostile one, first in the alphabet
        assert found.inner_text() == "0 of 61" and shown.count() == 0
        assert opened.wrong == []


def test_without_script_the_page_still_reads(browser, run):
    with Opened(browser, run, 390, java_script_enabled=False) as opened:
        assert opened.shown().count() == 20 and not opened.page.locator(".controls").is_visible()
        opened.page.locator(".fold summary").click()
        assert opened.shown().count() == 61
        assert opened.page.locator("#glossary dt").count() > 20


def test_no_script_but_ours_runs(browser, run):
    with Opened(browser, run) as opened:
        page = opened.page
        page.locator(".more").click(click_count=3)
        hostile = page.locator(".exchange", has_text="window.hacked").first
        hostile.scroll_into_view_if_needed()
        hostile.hover()
        assert EVIL in hostile.text_content() and page.locator("img").count() == 0
        assert page.evaluate("window.hacked") is None and opened.wrong == []
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))"
        )
        assert page.evaluate("window.hacked") is None and "Content Security Policy" in opened.wrong[0]
