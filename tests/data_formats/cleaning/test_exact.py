"""Exact duplicates: what counts as the same text, and that the first record stays."""

import random

from data_formats import Comparison, Demonstration, Document, Message, Prompt
from data_formats.cleaning import Cleaner, ExactDuplicates
from data_formats.cleaning.exact import content_key
from data_formats.records import Reply, Scored, ToolCall


def demo(question, answer="a", **more):
    return Demonstration((Message("user", question), Message("assistant", answer)), **more)


def test_the_first_stays_and_the_example_names_both():
    records = [demo("one", source="x"), demo("two"), demo("one", source="y"), demo(" one\n")]
    cleaner = Cleaner([ExactDuplicates()])
    assert list(cleaner.clean(records)) == records[:2]
    report = cleaner.report.steps[0]
    assert report.dropped == {"same text": 2} and report.examples == {"same text": "1 = 3: one"}


def test_white_space_and_unicode_forms_are_the_same_text():
    assert content_key(demo("caf\u0301  au\n\nlait")) == content_key(demo("caf\u0301 au lait "))
    assert content_key(demo("e\u0301")) == content_key(demo("\u00e9"))
    assert content_key(demo("你\u3000好")) == content_key(demo("你 好")) != content_key(demo("你好"))


def test_what_is_no_duplicate():
    turns = (Message("user", "q"),)
    records = [
        demo("ab", "c"),
        demo("a", "bc"),
        demo("A", "bc"),
        demo("q"),
        Demonstration((Message("user", "q"), Message("assistant", "a", reasoning="r"))),
        Demonstration((Message("user", "q"), Message("assistant", "a", tool_calls=(ToolCall("f", "{}"),)))),
        Demonstration((Message("system", "q"), Message("assistant", "a"))),
        Comparison(turns, "a", "b"),
        Comparison(turns, "b", "a"),
        Comparison(turns, "a", "b", chosen_turns=demo("x").messages),
        Comparison(turns, "a", "b", rejected_turns=demo("x").messages),
        Scored(turns, (Reply("a", 1.0),)),
        Scored(turns, (Reply("a", 0.0),)),
        Scored(turns, (Reply("a", 0.0, attributes=(("verbosity", 1.0),)),)),
        Prompt(turns),
        Document("q"),
    ]
    assert len({content_key(record) for record in records}) == len(records)


def test_by_prompt_each_prompt_is_kept_once():
    records = [demo("q", "a"), demo("q", "b"), demo("p", "a")]
    assert list(Cleaner([ExactDuplicates("prompt")]).clean(records)) == [records[0], records[2]]
    assert list(Cleaner([ExactDuplicates()]).clean(records)) == records


def test_which_texts_stay_does_not_depend_on_the_order():
    records = [demo(f"question {number % 300}") for number in range(1000)]
    shuffled = random.Random(0).sample(records, 1000)
    kept = [set(Cleaner([ExactDuplicates()]).clean(order)) for order in (records, shuffled)]
    assert kept[0] == kept[1] and len(kept[0]) == 300
