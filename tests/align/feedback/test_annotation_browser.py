"""The page in headless Chromium: a session by keys alone, one on a phone, and replies that would rather be programs."""

import pytest

from align.feedback.annotation import Annotation, shown_order
from align.feedback.items import FeedbackReply, new_item
from align.feedback.judgments import load_judgments, load_rows
from data_formats.records import Message, Prompt
from tests.align.feedback.annotation_case import Opened, item, served

pytestmark = pytest.mark.needs("playwright")
EVIL = (
    "</div></script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "<svg onload='window.hacked = 1'><iframe src='https://evil.example/'></iframe>"
    "<link rel=stylesheet href='https://evil.example/x.css'><a href='javascript:window.hacked=1'>click</a>"
    "<form action='https://evil.example/'><button>Save</button></form><base href='https://evil.example/'>"
    '<style>@import url(https://evil.example/y.css); * { display: none }</style>" onmouseover="window.hacked = 1'
)
RTL = "النص العربي من اليمين إلى اليسار، ثم English words ثم عربي مرة أخرى. \u202eevil\u202c שלום עולם"
STEERING = "a\x1b[31mred\x00\x07 back\x08\x08 half \ud83d zero\u200bwidth \U000e0041\U000e0101\u3164tag\r\nline\ttab"
STEERING += "\n```py\nx\x07 = 1\n``` said\n```\nto the end"
HOSTILE = new_item(
    Prompt(
        (Message("system", EVIL), Message("user", "hi " + EVIL), Message("assistant", RTL), Message("user", "go on"))
    ),
    [FeedbackReply("", text) for text in (EVIL, RTL, STEERING, "w" * 1_000_000)],
)
PAIRS = [item(f"What is {at}?", f"It is {at}.", f"That would be {at}, I think.") for at in range(5)]
HELD = """() => { // whatever is scrolled to, what a thumb meets at the first answer is that answer
    const answer = document.querySelector(".choose"), at = answer.getBoundingClientRect(), met = [];
    for (let y = 0; y < document.scrollingElement.scrollHeight; y += 15) {
        scrollTo(0, y);
        met.push(document.elementFromPoint(at.x + 9, at.y + 9) === answer);
    }
    return met.every(Boolean);
}"""
FITS = "document.scrollingElement.scrollWidth <= innerWidth"


def test_a_whole_session_by_keys_alone(browser, tmp_path):
    path, three = tmp_path / "j.jsonl", item("Which of three?", "one", "two", "three")
    with served(Annotation([*PAIRS, three], path, 1), "Be fair.") as url, Opened(browser, url) as opened:
        page = opened.page
        page.wait_for_selector("#name:focus")
        assert page.locator("#guideline .text").is_visible()  # the first time
        opened.join("Anna Ø")
        assert page.url == opened.home and page.evaluate("document.cookie") == ""
        assert page.locator(".turn .text").inner_text() == "What is 0?"
        opened.press("Enter")
        assert "Choose the best" in page.locator("#said").inner_text() and not path.exists()
        opened.press("2", "Enter")
        assert "How much better is it" in page.locator("#said").inner_text() and not path.exists()
        opened.press("1", "s")  # another one, with the focus on a strength
        assert opened.verdict() == "1 > 2 · significantly better"
        opened.save()
        opened.press("t")
        assert opened.verdict() == "1 = 2"
        opened.save()
        opened.press("x", "u", "2", "c")
        page.keyboard.type("both wrong; 1 and s are letters here")
        opened.press("Escape")
        assert opened.verdict() == "both bad · unsafe: 2"
        opened.save()
        opened.press("2", "l", "e", "ControlOrMeta+A")
        page.keyboard.type("It is 3, <b>to be sure</b>.")
        assert opened.verdict() == "2 > 1 · slightly better · 2 edited"
        opened.save(("Control+Enter",))
        opened.press("1", "n")
        opened.save()
        opened.press("3", "b")
        assert opened.verdict() == "3 > 1 = 2 · better"
        opened.press("0", "3", "=", "1")
        assert opened.verdict() == "1 = 3 > 2 · better"
        opened.save()
        page.wait_for_selector("#end:not([hidden])")
        assert page.locator("#progress").inner_text() == "6 of 6"
        opened.save(("z",))
        assert opened.verdict() == "1 = 3 > 2 · better"  # as it was said
        opened.press("0", "3", "s")
        opened.save()
        page.reload()
        page.wait_for_selector("#end:not([hidden])")
        assert opened.wrong == [] and all(one.startswith(opened.home) for one in opened.asked)
    *five, last = load_judgments(path)
    shown = {one.id: shown_order(one, "Anna Ø") for one in (*PAIRS, three)}
    assert [one.shown for one in (*five, last)] == list(shown.values())
    first, tie, bad, better, negligible = five
    assert first.ranking == tuple((one,) for one in first.shown) and first.strength == "significantly"
    assert (tie.ranking, tie.strength) == ((tie.shown,), None)
    assert (bad.ranking, bad.all_bad, bad.unsafe) == ((), True, bad.shown[1:])
    assert bad.comment == "both wrong; 1 and s are letters here"
    assert better.ranking == ((better.shown[1],), (better.shown[0],)) and better.strength == "slightly"
    assert (better.edited.of, better.edited.text) == (better.shown[1], "It is 3, <b>to be sure</b>.")
    assert negligible.grade == 1 and negligible.edited is None and negligible.seconds > 0
    assert last.ranking == ((last.shown[2],), last.shown[:2]) and last.grade == 4
    assert len(load_rows(path)) == 8


@pytest.mark.parametrize("width", [1400, 390])
def test_hostile_replies_are_text(browser, tmp_path, width):
    path = tmp_path / "j.jsonl"
    with served(Annotation([HOSTILE], path, 1), EVIL) as url, Opened(browser, url, width) as opened:
        page = opened.page
        opened.join("<img src=x onerror=alert(1)>")
        texts = {one.reply[:5]: page.locator(f".reply[data-id={one.id}] .text") for one in HOSTILE.replies}
        told = {begins: text.evaluate("node => node.textContent") for begins, text in texts.items()}
        assert told[EVIL[:5]] == EVIL and page.locator(".turn .text").first.inner_text() == EVIL
        assert told[RTL[:5]] == RTL.replace("\u202e", "\\u202e").replace("\u202c", "\\u202c")
        assert told[STEERING[:5]] == (
            "a\\u001b[31mred\\u0000\\u0007 back\\u0008\\u0008 half \\ud83d zero\\u200bwidth "
            "\\ue0041\\ue0101\\u3164tag\nline\ttab\n```py\nx\\u0007 = 1\n``` said\n```\nto the end"
        )
        assert page.locator(".code").all_text_contents() == ["```py\nx\\u0007 = 1\n```", "```\nto the end"]
        assert told["wwwww"] == "w" * 20_000
        more = page.locator(".reply .more:visible:enabled")
        assert more.inner_text() == "Show more (980,000 characters are left)"
        while more.count():
            more.click()
        whole = page.locator(".reply .text").evaluate_all("all => all.map(one => one.textContent.length)")
        assert max(whole) == 1_000_000
        assert page.locator(".reply *, .turn *").evaluate_all(
            "all => [...new Set(all.map(one => one.localName))].sort()"
        ) == ["button", "div", "h2", "kbd", "span"]
        assert page.evaluate(FITS)
        best = next(
            at
            for at, one in enumerate(shown_order(HOSTILE, "<img src=x onerror=alert(1)>"), 1)
            if HOSTILE.reply(one).reply == EVIL
        )
        opened.press(str(best), "b", "e", "End")
        page.keyboard.type("!")
        assert page.evaluate(FITS)
        opened.save(("Control+Enter",))
        assert page.evaluate("window.hacked") is None
        assert opened.wrong == [] and all(one.startswith(opened.home) for one in opened.asked)
    (kept,) = load_judgments(path)
    assert kept.edited.text == EVIL + "!" and HOSTILE.reply(kept.ranking[0][0]).reply == EVIL


def test_a_phone_without_keys(browser, tmp_path):
    path, four = tmp_path / "j.jsonl", item("Which of four?", *("words " * 90 + str(at) for at in range(4)))
    phone = {"width": 390, "has_touch": True, "is_mobile": True}
    with served(Annotation([PAIRS[0], four], path, 1)) as url, Opened(browser, url, **phone) as opened:
        page = opened.page
        page.locator("#name").fill("ben")
        page.get_by_role("button", name="Begin").tap()
        page.wait_for_selector("#task:not([hidden])")
        page.locator(".choose >> nth=1").tap()
        page.locator("label", has_text="negligibly").tap()
        assert page.evaluate(FITS) and opened.verdict() == "2 > 1 · negligibly better"
        page.locator("#save").tap()
        page.wait_for_selector(".reply >> nth=3")
        assert page.evaluate(HELD)
        for at in (3, 0):
            page.locator(f".choose >> nth={at}").tap()
        page.locator("#join-rank").tap()
        page.locator(".choose >> nth=1").tap()
        page.locator(".unsafe >> nth=2").tap()
        page.locator("label", has_text="significantly").tap()
        assert opened.verdict() == "4 > 1 = 2 > 3 · significantly better · unsafe: 3"
        assert page.evaluate(FITS)
        held = page.locator("#decide").bounding_box()
        assert held["height"] < 844 / 3 and page.locator("#save").bounding_box()["height"] >= 36
        page.locator("#save").tap()
        page.wait_for_selector("#end:not([hidden])")
        assert opened.wrong == []
    assert [one.grade for one in load_judgments(path)] == [1, 4]


def test_two_people_in_two_tabs_of_one_browser(browser, tmp_path):
    with served(Annotation(PAIRS[:2], tmp_path / "j.jsonl", 1)) as url, Opened(browser, url) as opened:
        opened.join("anna")
        second = opened.context.new_page()
        second.goto(opened.home)
        second.locator("#who", has_text="anna").click()
        second.wait_for_selector("#name:focus")
        second.keyboard.type("ben")
        second.keyboard.press("Enter")
        second.locator("#who", has_text="ben").wait_for()
        for page, name in ((opened.page, "anna"), (second, "ben")):
            page.reload()
            page.locator("#who", has_text=name).wait_for()
        assert opened.wrong == []


def test_what_no_server_heard_is_said_again_and_kept_once(browser, tmp_path):
    path = tmp_path / "j.jsonl"
    with served(Annotation(PAIRS[:2], path, 1)) as url:
        port = int(url.split(":")[2].partition("/")[0])
        opened = Opened(browser, url)
        opened.join("anna")
        opened.press("1", "b")
    with opened:
        page = opened.page
        opened.press("Enter")
        page.wait_for_selector("#said.wrong:not([hidden])")
        assert "Not saved" in page.locator("#said").inner_text() and opened.verdict() == "1 > 2 · better"
        with served(Annotation(PAIRS[:2], path, 1), port=port):
            page.route("**/judgments", lambda route: (route.fetch(), route.abort()))  # kept, but nobody hears of it
            opened.press("Enter")
            page.wait_for_selector("body:not(.sending)")
            page.unroute("**/judgments")
            assert len(load_rows(path)) == 1
            opened.save()
            assert len(load_rows(path)) == 1 and page.locator("#progress").inner_text() == "1 of 2"
