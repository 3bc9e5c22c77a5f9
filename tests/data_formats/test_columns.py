"""Further fields of prompts: lists and objects too, the same for every prompt, and written back."""

import json

from data_formats import Message, Prompt, read, write_jsonl
from data_formats.columns import with_all_columns

ROWS = [
    {"prompt": "q", "tests": [{"in": [1, 2], "out": None}], "answers": ["a", "b"], "reference": ["x", "y"]},
    {"prompt": "p", "difficulty": 3, "meta": {"deep": {"er": [True]}}, "category": "c", "answers": None},
]
ALL = {"tests", "answers", "references", "difficulty", "meta"}


def test_lists_and_objects_reach_rewards_and_what_a_row_lacks_is_none(tmp_path):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    first, second = read(tmp_path / "x.jsonl", Prompt).records
    assert first.columns.keys() == second.columns.keys() == ALL
    assert (first.columns["tests"], first.columns["answers"]) == (ROWS[0]["tests"], ["a", "b"])
    assert (first.reference, first.columns["references"], first.columns["meta"]) == ("x", ["x", "y"], None)
    assert (second.columns["meta"], second.columns["answers"], second.columns["tests"]) == (ROWS[1]["meta"], None, None)


def test_our_own_rows_keep_them(tmp_path):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    records = read(tmp_path / "x.jsonl", Prompt).records
    write_jsonl(tmp_path / "y.jsonl", records)
    again = read(tmp_path / "y.jsonl", Prompt).records
    assert again == records
    assert [one.columns for one in again] == [one.columns for one in records]


def test_prompts_of_several_files_get_each_others_columns():
    ask = (Message("user", "q"),)
    found = with_all_columns([Prompt(ask, columns={"a": 1}), Prompt(ask), Prompt(ask, columns={"b": [2]})])
    assert [one.columns for one in found] == [{"a": 1, "b": None}, {"a": None, "b": None}, {"a": None, "b": [2]}]


def test_tools_are_the_record_s_own_wherever_they_stood(tmp_path):
    turns = [{"role": "system", "content": "s", "tools": [{"name": "f"}]}, {"role": "user", "content": "q"}]
    rows = [{"messages": turns}, {"tools": [{"name": "g"}], "prompt": "q", "level": 1}]
    for at, row in enumerate(rows):
        (tmp_path / f"{at}.jsonl").write_text(json.dumps(row))
        (before,) = read(tmp_path / f"{at}.jsonl", Prompt).records
        write_jsonl(tmp_path / "y.jsonl", [before])
        (after,) = read(tmp_path / "y.jsonl", Prompt).records
        assert before.tools == after.tools == (f'{{"name": "{"fg"[at]}"}}',)
        assert before.columns == after.columns == ({}, {"level": 1})[at]
