"""Comparison rows in each shape, and why some are dropped."""

from collections import Counter
from dataclasses import replace

import pytest

from data_formats.comparisons import (
    hh_turns,
    parse_alpacaeval,
    parse_conversation_pair,
    parse_hh,
    parse_preference,
    parse_ranking,
    parse_stack_exchange_paired,
)
from data_formats.errors import DataError
from data_formats.formats import Dropped
from data_formats.records import Comparison, Message
from data_formats.writing import as_row

U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))
RAW_U, RAW_A = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "good"})
RAW_B = {"role": "assistant", "content": "bad"}
SIMPLE = Comparison((U("q"),), "good", "bad")


@pytest.mark.parametrize(
    ("told", "found"), [(2, 2), ("3", 3), (0, 0), (None, None), ("first", None), (True, None), ("9" * 5000, None)]
)
def test_a_row_tells_its_round(told, found):
    pair = parse_preference({"prompt": "q", "chosen": "good", "rejected": "bad", "round": told}, Counter())
    assert pair == replace(SIMPLE, round=found) and as_row(pair).get("round") == found


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [RAW_U], "chosen": "good", "rejected": "bad"},
        {"prompt": [RAW_U], "chosen": [RAW_A], "rejected": [RAW_B]},
        {"prompt": "q", "chosen": [RAW_U, RAW_A], "rejected": [RAW_U, RAW_B]},
        {"prompt": "q", "chosen": RAW_A, "rejected": {"from": "gpt", "value": "bad"}},
    ],
)
def test_preference_rows(row):
    assert parse_preference(row, Counter()) == SIMPLE


def test_native_row_keeps_grade_category_and_tags():
    row = {"prompt": "q", "chosen": "good", "rejected": "bad", "grade": 2, "category": "maths", "tags": ["correctness"]}
    expected = Comparison((U("q"),), "good", "bad", grade=2.0, category="maths", tags=("correctness",))
    assert parse_preference(row, Counter()) == expected


def test_other_shapes_give_the_same_record():
    asked = [{"from": "human", "value": "q"}]
    good, bad = {"from": "gpt", "value": "good"}, {"from": "gpt", "value": "bad"}
    rows = [
        (parse_ranking, {"conversations": asked, "chosen": good, "rejected": bad}),
        (parse_ranking, {"conversations": asked, "chosen": "good", "rejected": "bad"}),
        (parse_conversation_pair, {"chosen": [RAW_U, RAW_A], "rejected": [RAW_U, RAW_B]}),
        (parse_conversation_pair, {"chosen_messages": [RAW_U, RAW_A], "rejected_messages": [RAW_U, RAW_B]}),
        (parse_stack_exchange_paired, {"question": "q", "response_j": "good", "response_k": "bad"}),
        (parse_hh, {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}),
        (parse_alpacaeval, {"instruction": "q", "output_1": "good", "output_2": "bad", "preference": 1}),
        (parse_alpacaeval, {"instruction": "q", "output_1": "bad", "output_2": "good", "preference": 2}),
    ]
    for parse, row in rows:
        assert parse(row, Counter()) == SIMPLE, row


def test_alpacaeval_strength_is_the_probability_of_the_chosen():
    row = {"instruction": "q", "output_1": "bad", "output_2": "good", "preference": 1.75}
    assert parse_alpacaeval(row, Counter()) == Comparison((U("q"),), "good", "bad", grade=0.75)
    row["preference"] = 1.25
    assert parse_alpacaeval(row, Counter()) == Comparison((U("q"),), "bad", "good", grade=0.75)


def test_hh_transcript_keeps_blank_lines_and_speaker_names_inside_a_line():
    text = "\n\nHuman: one\n\ntwo\n\nAssistant: I said Human: no\n\nHuman: three"
    assert hh_turns(text, "chosen") == (U("one\n\ntwo"), A("I said Human: no"), U("three"))


def test_hh_with_two_turns_of_one_speaker_is_merged_and_counted():
    row = {
        "chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: good",
        "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: bad",
    }
    notes = Counter()
    assert parse_hh(row, notes).prompt == (U("a\n\nb"),)
    assert notes == {"consecutive turns of one speaker merged": 1}


@pytest.mark.parametrize(
    ("parse", "row", "reason"),
    [
        (parse_preference, {"prompt": "q", "chosen": "", "rejected": "bad"}, "empty reply"),
        (parse_preference, {"prompt": "q", "chosen": "x", "rejected": " x\n"}, "identical replies"),
        (parse_preference, {"prompt": " ", "chosen": "x", "rejected": "y"}, "empty prompt"),
        (parse_preference, {"prompt": "other", "chosen": [RAW_U, RAW_A], "rejected": "y"}, "prompts differ"),
        (parse_conversation_pair, {"chosen": [RAW_U], "rejected": [RAW_U, RAW_B]}, "ends without reply"),
        (parse_hh, {"chosen": "Human: a\n\nAssistant: x", "rejected": "Human: b\n\nAssistant: y"}, "prompts differ"),
        (parse_hh, {"chosen": "Human: a\n\nAssistant: ", "rejected": "Human: a\n\nAssistant: y"}, "empty reply"),
        (parse_alpacaeval, {"instruction": "q", "output_1": "x", "output_2": "y", "preference": 1.5}, "tie"),
        (parse_alpacaeval, {"instruction": "q", "output_1": "x", "output_2": "y", "preference": 0}, "tie"),
        (parse_alpacaeval, {"instruction": "q", "output_1": "x", "output_2": "y", "preference": None}, "tie"),
    ],
)
def test_rows_of_no_use_are_dropped_with_a_reason(parse, row, reason):
    with pytest.raises(Dropped, match=f"^{reason}$"):
        parse(row, Counter())


@pytest.mark.parametrize(
    ("parse", "row", "message"),
    [
        (parse_preference, {"prompt": "q", "chosen": 3, "rejected": "y"}, "field 'chosen': .*found 3"),
        (parse_preference, {"prompt": "q", "chosen": RAW_U, "rejected": "y"}, "the reply is by the user"),
        (parse_preference, {"prompt": "q", "chosen": "x", "rejected": "y", "grade": "big"}, "field 'grade'.*'big'"),
        (parse_preference, {"prompt": "q", "chosen": "x", "rejected": "y", "tags": "t"}, "field 'tags'"),
        (parse_hh, {"chosen": "Hi there", "rejected": "Human: a"}, "field 'chosen'.*starts with 'Human:'.*'Hi there'"),
        (parse_alpacaeval, {"instruction": "q", "output_1": "x", "output_2": "y", "preference": 3}, "found 3.0"),
        (parse_alpacaeval, {"instruction": "q", "output_1": "x", "output_2": "y", "preference": True}, "found True"),
    ],
)
def test_malformed_rows_name_the_field(parse, row, message):
    with pytest.raises(DataError, match=message):
        parse(row, Counter())
