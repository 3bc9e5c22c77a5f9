"""Gopher's and C4's rules, each at its limit, by hand; Chinese by characters; other records pass."""

import pytest

from data_formats import Demonstration, Document, Message
from data_formats.cleaning import C4, Gopher, WordList
from data_formats.cleaning.documents import words_of

GOOD = "the children and the dogs have been to the old house of my aunt. " * 5  # 70 words
GOOD_ZH = "我们在春天的时候搬到了河边的一座房子里，院子里有苹果树和洋葱。" * 3  # 29 characters each


def reason(step, text):
    found = step.check(Document(text))
    return None if found is None else found.reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD, None),
        (GOOD_ZH, None),
        ("the cat and the dog " * 9 + "have been to it", "too few words"),  # 49
        ("the cat and the dog " * 9 + "have been to it all", None),  # 50
        ("我们在春天的" * 8, "too few words"),  # 48 characters
        ("a b of to be " * 12, "mean word too short"),
        ("extraordinarily incomprehensible the and " * 20, "mean word too long"),  # 41 + spaces: mean 9.5 + …
        (GOOD + "# " * 8, "too many hashes"),  # 8 of 78
        (GOOD + "# " * 7, None),  # 7 of 77
        (GOOD + "so ... " * 10, "too many ellipses"),
        (GOOD + "1234 5678 9012 3456 " * 5, "too few words with letters"),  # 70 of 90
        ("\n".join(f"- {line}" for line in (GOOD, GOOD)), "too many lines with a bullet"),
        (
            "\n".join(["the cat and the dog have been to the old house of my aunt"] * 4 + ["and then…"] * 2),
            "too many lines",
        ),
        ("cats like fish while dogs like bones in many lands " * 6, "too few stop words"),
        ("红苹果绿苹果大香蕉小香蕉" * 6, "too few stop words"),
    ],
)
def test_gopher(text, said):
    if said == "mean word too long":
        text = "extraordinarily incomprehensible multiplications the and " * 15  # (15 + 16 + 15 + 3 + 3) / 5 = 10.4
    found = reason(Gopher(), text)
    assert found is None if said is None else found.startswith(said)


def test_gophers_limits_can_be_moved_and_lifted():
    assert reason(Gopher(min_words=None), "the cat and the dog") is None
    assert reason(Gopher(min_words=None, max_words=4), "the cat and the dog") == "too many words"
    nothing = dict.fromkeys(Gopher.__dataclass_fields__)
    assert reason(Gopher(**nothing), "#### ...") is None
    assert reason(Gopher(), "") == "too few words"


def test_words_keep_their_punctuation():
    assert words_of("Well, it's (so) far.") == (["Well,", "it's", "(so)", "far."], False)
    assert words_of("你好，Python 3。") == (["你好，Python", "3。"], False)  # two of four
    assert words_of("你好，世界！我是Tom。")[0] == ["你", "好，", "世", "界！", "我", "是", "Tom。"]


SENTENCES = "One two three. Four five six! He said “no.”"


def test_c4_takes_lines_out():
    boilerplate = "One line too short.\nPlease enable Javascript to see this.\nWe use cookies here, and more."
    text = f"Home | Shop | About\n{SENTENCES}\n{boilerplate}"
    found = C4().check(Document(text))
    assert (found.action, found.reason, found.repaired.text) == ("repair", "lines removed", SENTENCES)
    assert found.excerpt == "Home | Shop | About"
    assert C4().check(Document(SENTENCES)) is None
    for cited in (SENTENCES.replace("three.", "three[3]."), f"{SENTENCES}[12][citation needed]"):
        found = C4().check(Document(cited))
        assert (found.reason, found.repaired.text) == ("citations removed", SENTENCES)
    zh = "今天天气很好。我们去公园。你来吗？来！太好了。\n首页 登录"
    assert C4().check(Document(zh)).repaired.text == "今天天气很好。我们去公园。你来吗？来！太好了。"


def test_c4_drops_documents(tmp_path):
    words = tmp_path / "bad.txt"
    words.write_text("darn\n")
    for text, said in (
        (f"{SENTENCES} Lorem Ipsum dolor.", "lorem ipsum"),
        (f"{SENTENCES} Then {{ it ends.", "curly bracket"),
        ("One two three. Four five six.", "too few sentences"),
        (f"{SENTENCES}...", "too few sentences"),
        (f"{SENTENCES} Well, darn it.", "bad word"),
    ):
        assert reason(C4(bad_words=WordList(words)), text) == said
    assert reason(C4(curly_brackets=True), f"{SENTENCES} So {{}} it ends.") is None
    assert reason(C4(terminal_punctuation=False, min_sentences=None), "one two three four five") is None
    assert (
        reason(C4(terminal_punctuation=False, min_sentences=None, min_line_words=4), "one two three\nx")
        == "lines removed"
    )


def test_records_of_other_kinds_pass():
    record = Demonstration((Message("user", "Hi {"), Message("assistant", "Hi {")))
    assert Gopher().check(record) is None and C4().check(record) is None
