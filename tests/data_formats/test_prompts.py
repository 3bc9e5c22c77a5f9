"""Prompt rows in each shape."""

import json
from collections import Counter

import pytest

from data_formats.errors import DataError
from data_formats.formats import Dropped
from data_formats.prompts import (
    parse_conversation,
    parse_first_turn,
    parse_instruction,
    parse_prompt,
    parse_question,
    parse_turn_list,
)
from data_formats.reading import read
from data_formats.records import Message, Prompt

U, A = (lambda text, role=role: Message(role, text) for role in ("user", "assistant"))


@pytest.mark.parametrize(
    ("parse", "row", "expected"),
    [
        (parse_prompt, {"prompt": "q", "reference": "r", "category": "c"}, Prompt((U("q"),), "c", "r")),
        (parse_prompt, {"prompt": [{"role": "user", "content": "q"}]}, Prompt((U("q"),))),
        (parse_question, {"question": "q", "std_answer": "r", "class": "code"}, Prompt((U("q"),), "code", "r")),
        (parse_question, {"question": "q", "answer": "1\n#### 2"}, Prompt((U("q"),), "", "1\n#### 2")),
        (
            parse_conversation,
            {"messages": [{"role": "user", "content": "q"}], "ground_truth": "3", "dataset": "d"},
            Prompt((U("q"),), "d", "3"),
        ),
        (parse_question, {"question": "q", "class": 3}, Prompt((U("q"),), "3")),
        (
            parse_instruction,
            {"instruction": "q", "input": "x", "output": "r", "dataset": "d"},
            Prompt((U("q\nx"),), "d"),
        ),
        (parse_first_turn, {"turns": ["q", "more"], "reference": ["r", "s"]}, Prompt((U("q"),), "", "r")),
        (parse_turn_list, ["q"], Prompt((U("q"),))),
        (parse_turn_list, ["q", "r"], Prompt((U("q"),))),
        (parse_turn_list, ["q", "r", "p"], Prompt((U("q"), A("r"), U("p")))),
    ],
)
def test_prompt_rows(parse, row, expected):
    assert parse(row, Counter()) == expected


def test_a_reply_at_the_end_of_a_conversation_becomes_the_reference():
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]}
    assert parse_conversation(row, Counter()) == Prompt((U("q"),), "", "r")
    row["messages"].append({"role": "user", "content": "p"})
    assert parse_conversation(row, Counter()) == Prompt((U("q"), A("r"), U("p")))


def test_what_is_left_out_is_counted():
    notes = Counter()
    parse_first_turn({"turns": ["q", "more"]}, notes)
    parse_turn_list(["q", "r"], notes)
    assert notes == {"later turns left out": 1, "reply at the end left out": 1}


def test_empty_and_malformed():
    with pytest.raises(Dropped, match="empty prompt"):
        parse_question({"question": ""}, Counter())
    with pytest.raises(DataError, match="field 'question': expected a string, found list"):
        parse_question({"question": ["a"]}, Counter())
    with pytest.raises(DataError, match=r"field 'turns': .*found \[\]"):
        parse_first_turn({"turns": []}, Counter())


def test_further_columns_are_kept_for_rewards(tmp_path):
    rows = [{"prompt": "q", "category": "c", "safety_tag": "unsafe", "level": 2, "sure": True, "deep": {"x": 1}}]
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    (prompt,) = read(file, Prompt).records
    assert prompt.columns == {"safety_tag": "unsafe", "level": 2, "sure": True, "deep": {"x": 1}}
    assert prompt == Prompt((Message("user", "q"),), "c")  # columns do not count
