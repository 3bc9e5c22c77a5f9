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
            [{"messages": [], "tools": "[{}]"}],
            Demonstration,
            "line 1, field 'tools': tool definitions are not supported",
        ),
        (
            [{"messages": [], "label": False}],
            Demonstration,
            "field 'label': unpaired labelled replies are not supported",
        ),
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
    assert format_names(Document) == ["text", "lines", "whole"]


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
    long = "word " * 120
    (tmp_path / "wiki.txt").write_text(f"{long}\n\n{long}\r\n")
    (tmp_path / "prose.txt").write_text("one line\nanother\n")
    (tmp_path / "page.md").write_text(long)
    assert [d.text for d in read(tmp_path / "wiki.txt", Document).records] == [long, long]
    assert read(tmp_path / "prose.txt", Document).records == [Document("one line\nanother")]
    assert read(tmp_path / "prose.txt", Document, format="lines").records == [Document("one line"), Document("another")]
    assert read(tmp_path / "page.md", Document).report.format == "whole"
    with pytest.raises(DataError, match="plain text holds documents, not prompts"):
        read(tmp_path / "page.md", Prompt)
    with pytest.raises(DataError, match="has the formats auto, lines, whole, not 'text'"):
        read(tmp_path / "page.md", Document, format="text")


needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data files are not beside this checkout")


# Rows: the counts of the data folder's README. Kept: counted by hand for the files where some are dropped.
@needs_real
@pytest.mark.parametrize(
    ("name", "kind", "format", "rows", "kept"),
    [
        ("1_sft/alpaca_en.json", Demonstration, "alpaca", 500, 500),
        ("1_sft/alpaca_zh.json", Demonstration, "alpaca", 700, 700),
        ("1_sft/identity_template.json", Demonstration, "alpaca", 91, 91),
        ("1_sft/messages_parts.jsonl", Demonstration, "messages", 350, 350),
        ("1_sft/sharegpt_en_dummy.json", Demonstration, "sharegpt", 500, 500),
        ("1_sft/sharegpt_zh.jsonl.gz", Demonstration, "sharegpt", 300, 300),
        ("1_sft/sharegpt_zh_medical.jsonl", Demonstration, "sharegpt", 200, 200),
        ("2_preference/hh_harmless.jsonl.gz", Comparison, "hh", 1200, 1196),
        ("2_preference/ranking_sharegpt_en.json", Comparison, "ranking", 180, 180),
        ("2_preference/ranking_sharegpt_zh.json", Comparison, "ranking", 180, 180),
        ("2_preference/conv_chosen_str_zh.jsonl", Comparison, "ranking", 250, 250),
        ("2_preference/messages_pair_tiny.json", Comparison, "conversation_pair", 1, 1),
        ("2_preference/messages_parts_pairs.jsonl", Comparison, "messages_pair", 10, 10),
        ("2_preference/alpacaeval_weighted_fusechat_gemma.json", Comparison, "alpacaeval", 150, 150),
        ("3_coarse_comparisons/stack_exchange_paired.json", Comparison, "stack_exchange_paired", 25, 25),
        ("3_coarse_comparisons/alpacaeval_gpt4_alpaca-7b.json", Comparison, "alpacaeval", 200, 197),
        ("4_prompts/mt_bench.jsonl", Prompt, "turns", 80, 80),
        ("4_prompts/vicuna_bench.jsonl", Prompt, "turns", 80, 80),
        ("4_prompts/alignbench_zh.jsonl", Prompt, "question", 340, 340),
        ("4_prompts/belle_eval_zh.json", Prompt, "question", 400, 400),
        ("4_prompts/ifeval.jsonl", Prompt, "prompt", 300, 300),
        ("4_prompts/moss_ppo_train_zh.json", Prompt, "turn_list", 31, 31),
        ("4_prompts/alpacaeval_instructions_gpt35.json", Prompt, "instruction", 300, 300),
        ("5_text/c4_en.jsonl", Document, "text", 180, 180),
        ("5_text/wiki_en.txt", Document, "lines", 16, 16),
        ("5_text/en_article_gutenberg.txt", Document, "whole", 1, 1),
        ("5_text/zh_law_宪法.md", Document, "whole", 1, 1),
    ],
)
def test_real_files(name, kind, format, rows, kept):
    result = read(REAL / name, kind)
    assert (result.report.format, result.report.rows, len(result.records)) == (format, rows, kept)
    assert rows == kept + sum(result.report.dropped.values())


@needs_real
def test_real_quirks_are_counted():
    hh = read(REAL / "2_preference/hh_harmless.jsonl.gz", Comparison).report
    assert (hh.dropped, hh.repaired) == ({"empty reply": 4}, {"consecutive turns of one speaker merged": 2})
    sharegpt = read(REAL / "1_sft/sharegpt_zh.jsonl.gz", Demonstration).report
    assert sharegpt.repaired == {"cut at an empty turn": 1, "user turn without reply at the end removed": 1}
    assert read(REAL / "3_coarse_comparisons/alpacaeval_gpt4_alpaca-7b.json", Comparison).report.dropped == {"tie": 3}


@needs_real
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("1_sft/toolcall_sharegpt_en.json", Demonstration, "tool definitions"),
        ("1_sft/messages_reasoning_tools.jsonl", Demonstration, "tool definitions"),
        ("1_sft/self_instruct_seed_tasks.jsonl", Demonstration, "keys seen: id, name, instruction, instances"),
        ("2_preference/kto_unpaired_en.json", Comparison, "keys seen: messages, label"),
        ("2_preference/kto_unpaired_en.json", Demonstration, "unpaired labelled replies"),
        ("2_preference/toolcall_pairs_zh.jsonl", Comparison, "tool definitions"),
        ("2_preference/finegrained_qa_feedback.json", Comparison, "keys seen: question, passages"),
        ("3_coarse_comparisons/shp_one_real_row.jsonl", Comparison, "keys seen: post_id, domain"),
        ("3_coarse_comparisons/stackexchange_coffee_Posts.xml", Comparison, "unknown ending .xml"),
    ],
)
def test_real_files_of_later_depth_are_refused_clearly(name, kind, message):
    with pytest.raises(DataError, match=message):
        read(REAL / name, kind)


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
