"""Apologies, emoji and exclamation marks: what is found, what is left alone, in English and Chinese."""

import pytest

from data_formats import Comparison, Demonstration, Document, Message
from data_formats.cleaning import Apologies, Emoji, Exclamations


def demo(answer):
    return Demonstration((Message("user", "I'm sorry!!!! 😀😀😀😀😀😀"), Message("assistant", answer)))


@pytest.mark.parametrize(
    "text",
    [
        *("I'm sorry, but I can't.", "I’m so sorry to hear that", "Sorry, no.", "I am very sorry.", "Oh no, sorry!"),
        *("I apologize for the confusion.", "I sincerely apologise", "My apologies, I misread.", "Apologies for that."),
        *(
            "My deepest apologies!",
            "Please forgive me",
            "We're truly sorry.",
            "  \n**Sorry** about it",
            "I must apologize",
        ),
        *(
            "抱歉，我不能",
            "非常抱歉，这个问题",
            "对不起，",
            "很抱歉给您带来不便",
            "我很抱歉",
            "不好意思，",
            "我深表歉意",
            "请原谅我",
        ),
        *("真是太抱歉了", "您好，非常抱歉", "实在对不起", "我们对此深表歉意"),
    ],
)
def test_apologies(text):
    assert Apologies().check(demo(text)).action == "drop"


@pytest.mark.parametrize(
    "text",
    [
        *("Sure, here it is.", "Sorry state of affairs: a review", "The word 'sorry' is an adjective.", "No problem."),
        *(
            "Apology letter:\n\nDear Sir,",
            "Here is an apology: I'm sorry.",
            "I am not sorry.",
            "Apologetics is a field",
        ),
        *("好的，没问题。", "当然可以，道歉信如下", "道歉信的写法", "不好说", ""),
    ],
)
def test_no_apologies(text):
    assert Apologies().check(demo(text)) is None


def test_a_share_of_the_apologies_stays_whatever_the_order():
    demos = [demo(f"I'm sorry, I do not know answer {n}.") for n in range(1000)]
    step = Apologies(keep=0.2)
    kept = {d for d in demos if step.check(d).action == "note"}
    assert 150 < len(kept) < 250  # 200 expected, standard deviation 12.6
    assert kept == {d for d in reversed(demos) if step.check(d).action == "note"}
    assert all(Apologies(keep=1.0).check(d).action == "note" for d in demos)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Great 😀 job 🎉 well 🚀 done ✨", True),
        ("你好呀😀今天🌞天气真好🎉我们出去玩🚀吧", True),
        ("😀🎉🚀", False),  # three are allowed
        ("👨\u200d👩\u200d👧\u200d👦👍🏽🇨🇳", False),  # a family, a thumb and a flag are three
        ("👨\u200d👩\u200d👧\u200d👦👍🏽🇨🇳❤\ufe0f", True),
        ("✓ a ✗ b → c ★ d ♠ e ☑ f © ™", False),
        ("word " * 100 + "😀🎉🚀✨", False),  # 4 in 504 characters
    ],
)
def test_emoji(text, found):
    assert (Emoji().check(demo(text)) is not None) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Wow! Great! Yes! Super! Fine.", "too many exclamations"),
        ("太好了！真棒！加油！厉害！好的。", "too many exclamations"),
        ("Wow! Great! Yes!", None),  # three are allowed
        ("A. B. C. D. Wow! Great! Yes! Super!", None),  # half of them are allowed
        ("Stop!!!!", "run of exclamation marks"),
        ("不要！！！！", "run of exclamation marks"),
        ("Stop!!!", None),
        ("a != b, ![x](y) ![x](y) ![x](y) ![x](y)", None),
        ("```\nx!!!!\n```\nfine", None),
    ],
)
def test_exclamations(text, reason):
    finding = Exclamations().check(demo(text))
    assert (finding.reason if finding else None) == reason


def test_a_rejected_reply_may_be_in_bad_taste():
    prompt = (Message("user", "q"),)
    for step, bad in ((Apologies(), "Sorry."), (Emoji(allowed=0), "😀"), (Exclamations(), "!!!!!")):
        assert step.check(Comparison(prompt, "fine", bad)) is None
        assert step.check(Comparison(prompt, bad, "fine")) is not None
        assert step.check(Document(bad)) is not None
