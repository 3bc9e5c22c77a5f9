"""Reading whole files: which format is chosen, what is counted, where errors point, and the real files."""

import json
from pathlib import Path

import pytest

from data_formats import (
    Comparison,
    DataError,
    Demonstration,
    Document,
    EmptyDatasetError,
    Message,
    MissingFileError,
    Prompt,
    format_names,
    read,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "real"
ALPACA = {"instruction": "i", "input": "", "output": "o"}


def written(tmp_path, *rows, name="x.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_records_and_report(tmp_path):
    path = written(
        tmp_path,
        ALPACA,
        ALPACA | {"output": " "},
        ALPACA | {"output": "p", "category": "c"},
        ALPACA | {"output": ""},
        ALPACA | {"instruction": ""},
    )
    result = read(path, Demonstration)
    assert [record.messages[1].content for record in result.records] == ["o", "p"]
    assert [record.category for record in result.records] == ["", "c"]
    report = result.report
    assert (report.format, report.rows, report.records) == ("alpaca", 5, 2)
    assert report.dropped == {"empty reply": 2, "empty turn": 1}
    assert report.describe() == f"{path} (alpaca): 5 rows, 2 kept; dropped: empty reply 2, empty turn 1"


def test_repairs_are_counted_for_kept_rows_only(tmp_path):
    def turns(*texts):
        return {"messages": [{"role": role, "content": text} for role, text in texts]}

    trailing = turns(("user", "a"), ("assistant", "b"), ("user", "c"))
    lost = turns(("user", "a"), ("user", "b"))
    report = read(written(tmp_path, trailing, lost), Demonstration).report
    assert report.repaired == {"user turn without reply at the end removed": 1}
    assert report.dropped == {"no reply": 1}
    assert report.describe().endswith("dropped: no reply 1; repaired: user turn without reply at the end removed 1")


def test_a_row_repaired_twice_in_one_way_is_one_repaired_row(tmp_path):
    row = ALPACA | {"instruction": "a\ud800", "output": "b\udfff"}
    assert read(written(tmp_path, row), Demonstration).report.repaired == {"unpaired surrogate replaced": 1}


def test_limit_counts_records_and_category_is_set_on_all(tmp_path):
    path = written(tmp_path, ALPACA | {"output": ""}, ALPACA, ALPACA, ALPACA)
    result = read(path, Demonstration, limit=2, category="talk")
    assert (result.report.rows, result.report.records) == (3, 2)
    assert {record.category for record in result.records} == {"talk"}


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        (ALPACA, Demonstration, "alpaca"),
        (ALPACA | {"messages": []}, Demonstration, "alpaca"),
        ({"prompt": "q", "chosen": "Human: x", "rejected": "Human: y"}, Comparison, "preference"),
        ({"messages": [{"role": "user", "content": "q"}], "id": 1}, Prompt, "messages"),
        ({"prompt": "q", "chosen": "x", "rejected": "y"}, Comparison, "preference"),
        ({"prompt": "q", "chosen": "x", "rejected": "y"}, Prompt, "prompt"),
        ({"chosen": "Human: q\n\nAssistant: x", "rejected": "Human: q\n\nAssistant: y"}, Comparison, "hh"),
        ({"instruction": "q", "output": "r"}, Prompt, "instruction"),
        ({"text": "t", "url": "u"}, Document, "text"),
    ],
)
def test_the_format_with_most_fields_wins(tmp_path, row, kind, expected):
    assert read(written(tmp_path, row), kind).report.format == expected


def test_a_tie_between_formats_is_refused_and_settled_by_name(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    path = written(tmp_path, {"messages": turns, "conversations": turns})
    with pytest.raises(DataError, match="line 1: the row could be messages or sharegpt; say which with 'format'"):
        read(path, Demonstration)
    assert read(path, Demonstration, format="sharegpt").report.format == "sharegpt"


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([{"a": 1, "b": 2}], Demonstration, "line 1: no demonstration format has this shape; keys seen: a, b; known"),
        (["text"], Prompt, r"line 1: no prompt format has this shape; keys seen: none \(a str\)"),
        (
            [{"chosen": "x", "rejected": "y"}],
            Comparison,
            "no comparison format has this shape; keys seen: chosen, rejected",
        ),
        ([ALPACA, {"instruction": "i"}], Demonstration, "line 2: .*shape of format alpaca .*keys seen: instruction$"),
        ([ALPACA, 7], Demonstration, r"line 2: .*keys seen: none \(a int\)"),
        ([ALPACA, ALPACA | {"output": 5}], Demonstration, "line 2, field 'output': expected a string, found int 5"),
        (
            [{"messages": [{"role": "user", "content": "q"}], "tools": "[1]"}],
            Prompt,
            "line 1, field 'tools': expected a list of function definitions",
        ),
        (
            [{"conversations": [], "label": False}],
            Demonstration,
            "field 'label': unpaired labelled replies are not supported",
        ),
        ([{"conversations": [], "chosen": "", "rejected": "x"}], Demonstration, "field 'rejected': ranked replies are"),
        ([{"task_id": 1, "completion": "x"}], Prompt, "line 1: these are completions without their prompts"),
        ([{"problem": 1, "content": {}}], Prompt, "line 1: these are rows wrapped in 'content'; take them out"),
    ],
)
def test_errors_name_file_line_field_and_finding(tmp_path, rows, kind, message):
    with pytest.raises(DataError, match=message) as caught:
        read(written(tmp_path, *rows), kind)
    assert str(caught.value).startswith(str(tmp_path / "x.jsonl"))


def test_a_list_has_rows_and_no_lines(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([ALPACA, 7], indent=2))
    with pytest.raises(DataError, match=r"x\.json, row 2: "):
        read(path, Demonstration)


def test_unknown_format_names_are_refused_with_the_known_ones(tmp_path):
    path = written(tmp_path, ALPACA)
    with pytest.raises(
        DataError, match="unknown demonstration format 'alpacca'; known are auto, messages, sharegpt, alpaca"
    ):
        read(path, Demonstration, format="alpacca")
    assert format_names(Document) == ["text"]


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(MissingFileError, match="no such file"):
        read(tmp_path / "no.txt", Document)
    with pytest.raises(MissingFileError, match="no such file"):
        read(tmp_path / "no.jsonl", Document)
    for name, content in [("x.jsonl", "\n"), ("x.json", "[]"), ("x.txt", ""), ("x.json", "")]:
        (tmp_path / name).write_text(content)
        with pytest.raises(EmptyDatasetError, match="the file holds no rows"):
            read(tmp_path / name, Document)


def test_text_files(tmp_path):
    (tmp_path / "prose.txt").write_text("one line\n\nanother\n")
    assert read(tmp_path / "prose.txt", Document).records == [Document("one line\n\nanother")]
    lines = read(tmp_path / "prose.txt", Document, split="lines")
    assert lines.records == [Document("one line"), Document("another")]
    assert (lines.report.rows, lines.report.used, lines.report.dropped) == (3, 2, {"empty text": 1})
    with pytest.raises(DataError, match="plain text holds documents, not prompts"):
        read(tmp_path / "prose.txt", Prompt)
    with pytest.raises(DataError, match=r"prose\.txt, field 'split': unknown split 'words'; a text file has"):
        read(tmp_path / "prose.txt", Document, split="words")
    with pytest.raises(DataError, match="only text files are split, not this one; remove split 'lines'"):
        read(written(tmp_path, ALPACA), Demonstration, split="lines")


needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data files are not beside this checkout")


@needs_real
def test_contents_of_a_few_real_rows():
    raw = json.loads((REAL / "4_prompts/belle_eval_zh.json").read_text(encoding="utf-8").split("\n")[0])
    (prompt,) = read(REAL / "4_prompts/belle_eval_zh.json", Prompt, limit=1).records
    assert prompt == Prompt((Message("user", raw["question"]),), "code", raw["std_answer"])

    raw = json.loads((REAL / "2_preference/messages_pair_tiny.json").read_text())[0]
    (pair,) = read(REAL / "2_preference/messages_pair_tiny.json", Comparison).records
    replies = [raw[side][1]["content"] for side in ("chosen", "rejected")]
    assert pair == Comparison((Message("user", raw["chosen"][0]["content"]),), *replies)

    raw = json.loads((REAL / "1_sft/sharegpt_en_dummy.json").read_text())[0]
    (talk,) = read(REAL / "1_sft/sharegpt_en_dummy.json", Demonstration, limit=1).records
    assert [turn.role for turn in talk.messages] == ["user", "assistant"] * 2
    assert [turn.content for turn in talk.messages] == [turn["value"] for turn in raw["conversations"]]
