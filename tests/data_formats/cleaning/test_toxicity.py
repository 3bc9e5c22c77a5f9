"""Lists of words by whole words, judges in their order, batches, and what of a record is read."""

import pytest

from data_formats import Comparison, Demonstration, Document, Message
from data_formats.cleaning import Cleaner, Perplexity, Toxicity, WordList
from data_formats.errors import DataError, MissingFileError


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\ufeff# comment\nIdiot\n\npiece of trash\n白痴\ndon't\n", encoding="utf-8")
    return WordList(path)


def test_words_are_whole_and_chinese_ones_characters(words):
    found = ["You IDIOT!", "a piece  of\ntrash.", "你这个白痴。", "an idiot's", "ＩＤＩＯＴ", "I don't"]
    passed = ["idiotic", "idiots", "a piece of the trash", "白的痴", "", "idio t", "# comment"]
    assert words(found[:3] + found[4:]) == ["word list"] * 5
    assert words(passed) == [None] * len(passed)


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff\xfe", "UTF-8"), (b"# only\n", "holds no word"), (b"ok\n***\n", "line 2.*no letter")]
)
def test_bad_lists(tmp_path, content, said):
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        WordList(path)
    with pytest.raises(MissingFileError, match=r"none.txt: cannot read"):
        WordList(tmp_path / "none.txt")


def test_replies_or_the_whole_record(words):
    record = Comparison((Message("user", "You idiot"),), chosen="Please stay calm.", rejected="Idiot yourself.")
    assert Toxicity([words]).check(record) is None
    found = Toxicity([words], of="record").check(record)
    assert (found.action, found.reason, found.excerpt) == ("drop", "word list", "You idiot")
    assert Toxicity([words], of="record", action="keep").check(record).action == "note"
    demo = Demonstration((Message("user", "x"), Message("assistant", "fine"), Message("assistant", "an idiot")))
    assert Toxicity([words]).check(demo).excerpt == "an idiot"


def test_a_judge_is_asked_once_a_batch_for_what_none_before_has_found(words):
    asked = []

    def second(texts):
        asked.append(list(texts))
        return ["long" if len(text) > 5 else None for text in texts]

    cleaner = Cleaner([Toxicity([words, second], batch_size=3)])
    texts = ["idiot", "short", "longer", "x", "y"]
    kept = [record.text for record in cleaner.clean(map(Document, texts))]
    assert kept == ["short", "x", "y"]
    assert asked == [["short", "longer"], ["x", "y"]]
    assert cleaner.report.steps[0].dropped == {"word list": 1, "long": 1}
    assert (cleaner.report.rows, cleaner.report.records) == (5, 3)


def test_records_come_in_their_order_and_steps_see_what_is_left(words):
    seen = []

    class Watching:
        name, looks_for = "watching", ""

        def check(self, record):
            seen.append(record.text)

    cleaner = Cleaner(
        [Watching(), Toxicity([words], batch_size=2), Perplexity(lambda texts: [1.0] * len(texts), min_nats=0.5)]
    )
    texts = ["a", "idiot", "b", "c", "idiot"]
    assert [record.text for record in cleaner.clean(map(Document, texts))] == ["a", "b", "c"]
    assert seen == texts
    assert [step.seen for step in cleaner.report.steps] == [5, 5, 3]


def test_perplexity_has_limits_on_both_sides():
    nats = {"low": 0.5, "mid": 2.0, "high": 5.0, "none": None}
    step = Perplexity(lambda texts: [nats[text] for text in texts], min_nats=0.5, max_nats=4.0)
    assert [step.check(Document(text)) and step.check(Document(text)).reason for text in nats] == [
        *(None, None, "more nats a token than max_nats", None),
    ]
    step = Perplexity(lambda texts: [nats[text] for text in texts], min_nats=0.6)
    assert step.check(Document("low")).excerpt == "0.50: low"
    assert step.check(Document(" ")) is None
    demo = Demonstration((Message("user", "low"), Message("assistant", "mid"), Message("assistant", "low")))
    assert step.check(demo).reason == "fewer nats a token than min_nats"
