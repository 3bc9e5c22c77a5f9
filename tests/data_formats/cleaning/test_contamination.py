"""Overlap with evaluation prompts: 13 words, characters in Chinese, whole short prompts, rewording, the two kinds."""

import random

import pytest

from data_formats import Comparison, Demonstration, Document, Message, Prompt
from data_formats.cleaning import Decontamination, contamination
from data_formats.cleaning.contamination import common_subsequence

QUESTION = (  # 14 words
    "Natalia sold clips to forty eight of her friends in April, and then half"
)
CHINESE = "小明有三个苹果，又买了五个苹果，一共多少？"  # 18 characters without the marks


def prompt(text, reference=None):
    return Prompt((Message("user", text),), reference=reference)


def demo(question, answer="fine"):
    return Demonstration((Message("user", question), Message("assistant", answer)))


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (demo(QUESTION), True),
        (demo(f"Please solve: {QUESTION.upper()}!!! Thanks."), True),
        (demo(" ".join(QUESTION.split()[1:])), True),  # 13 of the 14 words
        (demo(" ".join(QUESTION.split()[2:])), False),  # 12 of them
        (demo(QUESTION.replace("forty", "fifty")), False),
        (demo("A riddle?", f"Here: {QUESTION}"), True),
        (Comparison((Message("user", "q"),), "a", QUESTION), True),
        (Comparison((Message("user", "q"),), "a", "b", rejected_turns=(Message("user", QUESTION),)), True),
        (prompt(QUESTION), True),
        (Document(f"Web page. {QUESTION.replace(' ', chr(10))} End."), True),
    ],
)
def test_english_by_words(record, found):
    finding = Decontamination([prompt(QUESTION)], reworded=None).check(record)
    assert (finding is not None) == found
    if found:
        assert (finding.action, finding.reason) == ("drop", "input only")
        assert "clips to forty eight" in finding.excerpt


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"请回答：{CHINESE}谢谢", True),
        (f"Translate into English: {CHINESE}", True),
        (CHINESE.replace("，", " ")[5:], True),
        (CHINESE[:13], False),  # 12 characters and a comma
        (CHINESE.replace("苹果", "梨"), False),
    ],
)
def test_chinese_by_characters(text, found):
    assert (Decontamination([prompt(CHINESE)], reworded=None).check(demo(text)) is not None) == found


def test_n_is_the_users():
    shorter = demo(" ".join(QUESTION.split()[2:]))
    assert Decontamination([prompt(QUESTION)], n=12).check(shorter) is not None
    assert Decontamination([prompt(CHINESE)], chinese_n=12).check(demo(CHINESE[:13])) is not None
    assert Decontamination([prompt(CHINESE)], n=3).check(demo(CHINESE[:13])) is None
    assert Decontamination([prompt(QUESTION)], n=3).check(demo("He sold clips to fifty")) is not None


@pytest.mark.parametrize(
    ("asked", "text", "found"),
    [
        (QUESTION, QUESTION.replace("forty", "fifty"), True),  # 13 of 14 words, in two pieces
        (QUESTION, f"A page about her. {QUESTION.replace('forty', 'fifty')} And on it goes.", True),
        (QUESTION, QUESTION.replace("forty", "fifty").replace("April", "May"), False),  # 12, fewer than n
        (f"{QUESTION} {QUESTION[::-1]}", QUESTION.replace("forty", "fifty"), False),  # 13 of 28
        (f"{QUESTION} and sold pears too", f"{QUESTION.replace('forty', 'fifty')} that day", True),  # 14 of 18
        (QUESTION, " then ".join(QUESTION.split()), False),  # each word in its order, and no four in a row
        (CHINESE, CHINESE.replace("苹果", "梨"), True),  # 14 of 18
        (CHINESE, CHINESE.replace("三", "四").replace("五", "六").replace("苹果", "梨"), False),  # 12
    ],
)
def test_a_prompt_reworded(asked, text, found):
    for record in (demo(text), Document(text)):
        finding = Decontamination([prompt(asked)]).check(record)
        assert (finding is not None) == found
        assert finding is None or finding.reason == "reworded input only"


def test_the_share_that_is_reworded_is_the_users():
    words = [f"word{number}" for number in range(40)]
    text = " ".join(word if number % 5 or number > 35 else "other" for number, word in enumerate(words))  # 32 of 40
    for share, found in ((0.8, True), (0.81, False), (None, False)):
        step = Decontamination([prompt(" ".join(words), "72")], reworded=share)
        assert (step.check(demo(text)) is not None) == found
    assert Decontamination([prompt(" ".join(words), "72")]).check(demo(text, "72")).reason == "reworded input and label"


def test_the_longest_common_subsequence_is_that_of_the_table():
    rng = random.Random(0)
    for _ in range(100):
        left, right = (rng.choices("abcd", k=rng.randint(0, 90)) for _ in range(2))
        row = [0] * (len(right) + 1)
        for one in left:
            before, row = row, [0]
            for at, other in enumerate(right):
                row.append(before[at] + 1 if one == other else max(before[at + 1], row[at]))
        assert common_subsequence(left, right) == row[-1]


def test_a_short_prompt_is_found_inside_of_a_text_from_eight_words_on():
    step = Decontamination([prompt("How can I improve my time management skills?")])
    assert step.check(demo("Tell me: how can I improve my time management skills? Thanks!")) is not None
    assert step.check(demo("How can I improve my own time management skills?")) is None
    shorter = Decontamination([prompt("How can I improve my time management?")])
    assert shorter.check(demo("Tell me: how can I improve my time management? Thanks!")) is None
    assert shorter.check(demo("How can I improve my time management")) is not None


def test_a_shorter_prompt_is_found_as_a_whole_turn_only():
    step = Decontamination([prompt("What breed dog is smallest?"), prompt("你好吗？")])
    assert step.check(demo("what breed dog is  smallest")) is not None
    assert step.check(demo("你好吗")) is not None
    assert step.check(demo("What breed dog is smallest? And which is tallest?")) is None
    assert step.check(demo("她问我你好吗")) is None


def test_input_and_label_is_told_from_input_alone():
    evaluation = [prompt(QUESTION, "72"), demo(CHINESE, "八个")]
    both = [demo(QUESTION, "The answer is 72."), demo(CHINESE, "一共八个。"), Document(f"{QUESTION} It is 72.")]
    alone = [demo(QUESTION, "The answer is 720."), demo(CHINESE, "九个"), prompt(QUESTION)]
    for kind, action in (("input", "drop"), ("input_and_label", "note")):
        step = Decontamination(evaluation, kind=kind)
        assert [(f.action, f.reason) for f in map(step.check, both)] == [("drop", "input and label")] * 3
        assert [(f.action, f.reason) for f in map(step.check, alone)] == [(action, "input only")] * 3


def test_the_answer_to_another_prompt_is_no_label():
    other = QUESTION.replace("Natalia", "Boris").replace("clips", "pears")
    step = Decontamination([prompt(QUESTION, "72"), prompt(other, "99")])
    assert step.check(demo(QUESTION, "99")).reason == "input only"


def test_a_share_of_the_prompt_can_be_asked_for():
    long = " ".join(f"word{n}" for n in range(22))  # ten 13-grams
    part = " ".join(f"word{n}" for n in range(17))  # five of them
    assert Decontamination([prompt(long)], min_share=0.5, reworded=None).check(demo(part)) is not None
    assert Decontamination([prompt(long)], min_share=0.51, reworded=None).check(demo(part)) is None


def test_the_words_of_a_template_do_not_count():
    template = "Read the text below with care and then answer the question that follows it in one word"
    evaluation = [prompt(f"{template}: subject number {n} of the list") for n in range(11)]
    training = demo(f"{template}: something else")
    assert Decontamination(evaluation).check(training) is None
    assert Decontamination(evaluation[:10]).check(training) is not None
    assert Decontamination(evaluation).check(demo(f"{template}: subject number 3 of the list")) is not None


def test_nothing_is_found_without_evaluation_prompts():
    for evaluation in ([], [prompt("")], [prompt("?!")]):
        step = Decontamination(evaluation)
        assert all(step.check(record) is None for record in (demo(QUESTION), demo(""), demo("?!"), Document("")))


def test_a_prompt_that_repeats_itself_is_not_compared_everywhere(monkeypatch):
    """Tables of the same numbers: each place in the text could be any place in the prompt."""
    looks, real = [], contamination.common_subsequence
    monkeypatch.setattr(contamination, "common_subsequence", lambda *two: looks.append(1) or real(*two))
    step = Decontamination([prompt("0 " * 400 + "which comes next")])
    assert step.check(demo("0 0 0 0 a b c d e f g h " * 1000)) is None
    assert len(looks) < 64 + 12_000 / 100 + 8  # and not 12,000: one at every quarter of a prompt
    assert step.check(demo("0 0 0 0 a b c d e f g h " * 1000 + "0 1 " * 4 + "0 0 0 0 2 " * 100)).reason.startswith(
        "rew"
    )
