"""Shares counted by hand; texts that repeat themselves go and ordinary ones stay, in both languages."""

import random

import pytest

from data_formats import Comparison, Demonstration, Document, Message
from data_formats.cleaning import Repetition
from data_formats.cleaning.repetition import duplicate_ngrams, repeated_share, repeats, top_ngram
from data_formats.records import Reply, Scored

ENGLISH = (
    "Photosynthesis is how plants turn light into food. Leaves take in carbon dioxide from the air through tiny pores, "
    "while roots bring water up from the soil. Inside each cell, a green pigment catches sunlight and uses its energy "
    "to split the water. What remains joins with the gas to make sugar, and oxygen escapes as a welcome by-product."
)
CHINESE = (
    "光合作用是植物把阳光变成养分的过程。叶片通过气孔吸收二氧化碳，根部从土壤里输送水分。细胞中的叶绿素捕捉光能，"
    "将水分解，再与碳结合生成糖类，同时向空气释放氧气。没有它，动物和人类都无法生存，因为几乎所有食物链都从绿色植物开始。"
)
ONLY_NGRAMS = {"lines": None, "paragraphs": None, "line_chars": None, "paragraph_chars": None}


def test_shares_by_hand():
    assert repeated_share(["x", "yy", "yy"]) == 1 / 3
    assert repeated_share(["x", "yy", "yy"], characters=True) == 2 / 5
    assert repeated_share([]) == 0
    for measure, words, n, expected in (
        (top_ngram, "a b a b ccc", 2, (4 / 7, "a b")),
        (top_ngram, "a b c d", 2, (0, "")),
        (duplicate_ngrams, "a b c a b c", 3, (1 / 2, "a b c")),
        (duplicate_ngrams, "a a a a a", 2, (4 / 5, "a a")),  # the second to the fifth, each once
        (duplicate_ngrams, "a b", 3, (0, "")),
    ):
        assert measure(words.split(), n, repeats(words.split(), n)) == expected


def test_longer_repeats_are_looked_for_where_shorter_ones_begin():
    rng = random.Random(1)
    for _ in range(50):
        words = rng.choices("abc", k=rng.randint(0, 60))
        starts = None
        for n in (2, 3, 5, 9):
            groups = repeats(words, n, starts)
            assert groups == repeats(words, n)
            starts = sorted(at for group in groups for at in group)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, f"{ENGLISH}\n\n{CHINESE}", "", "短", "Yes."])
def test_ordinary_texts_stay(text):
    assert Repetition().check(Document(text)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("one\ntwo\ntwo\ntwo", "repeated lines"),
        ("一\n二\n二\n二", "repeated lines"),
        ("a\nb\nc\nlonger line\nlonger line", "characters in repeated lines"),
        (f"{ENGLISH} {ENGLISH}", "duplicate 5-grams"),
        (f"{CHINESE}{CHINESE}", "duplicate 5-grams"),
        (ENGLISH + " very good" * 20, "top 2-grams"),
        (CHINESE + "非常好看" * 15, "top 2-grams"),
    ],
)
def test_repetitive_texts_go(text, reason):
    assert Repetition().check(Document(text)).reason == reason


def test_repeated_paragraphs_are_told_from_repeated_lines():
    paragraphs = ["a b\nc d", "a b\nc d", "e"]
    step = Repetition(lines=None, line_chars=None)
    assert step.check(Document("\n\n".join(paragraphs))).reason == "repeated paragraphs"
    step = Repetition(lines=None, line_chars=None, paragraphs=None)
    assert step.check(Document("\n\n".join(paragraphs))).reason == "characters in repeated paragraphs"


def test_code_fences_are_no_lines_and_short_texts_have_no_ngrams():
    fenced = "\n".join(f"```\nvalue {n} of many\n```\n---" for n in range(4))
    assert Repetition(top_ngrams={}, duplicate_ngrams={}).check(Document(fenced)) is None
    chant = "ha ha ha ha ha"
    assert Repetition().check(Document(chant)) is None
    assert Repetition(min_words=0).check(Document(chant)).reason == "top 2-grams"


def test_limits_are_the_users():
    twice = Document(f"{ENGLISH} {ENGLISH}")
    assert Repetition(**ONLY_NGRAMS, top_ngrams={}, duplicate_ngrams={5: 0.51}).check(twice) is None
    assert Repetition(**ONLY_NGRAMS, top_ngrams={}, duplicate_ngrams={5: 0.49}).check(twice) is not None


def test_wanted_replies_alone_are_judged():
    prompt, bad = (Message("user", "q"),), "two\ntwo\ntwo"
    assert Repetition().check(Comparison(prompt, "fine", bad)) is None
    assert Repetition().check(Comparison(prompt, bad, "fine")) is not None
    assert Repetition().check(Demonstration((Message("user", bad), Message("assistant", "fine")))) is None
    assert Repetition().check(Scored(prompt, (Reply("fine", 2.0), Reply(bad, 1.0)))) is None
    assert Repetition().check(Scored(prompt, (Reply("fine", 1.0), Reply(bad, 2.0)))) is not None
    assert Repetition().check(Scored(prompt, (Reply(bad, 0.0),))) is None
    assert Repetition().check(Scored(prompt, (Reply(bad, 1.0),))) is not None
