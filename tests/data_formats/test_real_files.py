"""Every real file: rows in as its manifest says, records out, drops and repairs as pinned here."""

import os
import re
from functools import cache
from pathlib import Path

import pytest

from data_formats import Comparison, DataError, Demonstration, Document, Prompt, Record, Scored, read, write_jsonl

SHARED = Path(os.environ.get("ALIGN_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "real"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the real data files are not beside this checkout")
TEXT = (".md", ".txt")
REFUSED = {
    "6_checkable/humaneval_example_samples.jsonl": "line 1: these are completions without their prompts",
    "7_messy/messy_rows.jsonl": "line 1: these are rows wrapped in 'content'",
}
# file, kind, format, rows, records, dropped, parts left out, repaired
PINNED = [
    ("1_sft/alpaca_en.json", Demonstration, "alpaca", 500, 500, {}, {}, {}),
    ("1_sft/alpaca_en.json", Prompt, "instruction", 500, 500, {}, {}, {}),
    ("1_sft/alpaca_zh.json", Demonstration, "alpaca", 700, 700, {}, {}, {}),
    ("1_sft/alpaca_zh.json", Prompt, "instruction", 700, 700, {}, {}, {}),
    ("1_sft/identity_template.json", Demonstration, "alpaca", 91, 91, {}, {}, {}),
    ("1_sft/identity_template.json", Prompt, "instruction", 91, 91, {}, {}, {}),
    ("1_sft/messages_parts.jsonl", Demonstration, "messages", 350, 350, {}, {}, {}),
    ("1_sft/messages_parts.jsonl", Prompt, "messages", 350, 350, {}, {}, {}),
    ("1_sft/messages_reasoning_tools.jsonl", Demonstration, "messages", 20, 20, {}, {}, {}),
    ("1_sft/messages_reasoning_tools.jsonl", Prompt, "messages", 20, 20, {}, {}, {}),
    ("1_sft/self_instruct_seed_tasks.jsonl", Demonstration, "self_instruct", 175, 175, {}, {}, {}),
    ("1_sft/self_instruct_seed_tasks.jsonl", Prompt, "self_instruct", 175, 175, {}, {}, {}),
    ("1_sft/sharegpt_en_dummy.json", Demonstration, "sharegpt", 500, 500, {}, {}, {}),
    ("1_sft/sharegpt_en_dummy.json", Prompt, "sharegpt", 500, 500, {}, {}, {}),
    (
        "1_sft/sharegpt_zh.jsonl.gz",
        Demonstration,
        "sharegpt",
        300,
        300,
        {},
        {},
        {"cut at an empty turn": 1, "user turn without reply at the end removed": 1},
    ),
    ("1_sft/sharegpt_zh.jsonl.gz", Prompt, "sharegpt", 300, 300, {}, {}, {"cut at an empty turn": 1}),
    ("1_sft/sharegpt_zh_medical.jsonl", Demonstration, "sharegpt", 200, 200, {}, {}, {}),
    ("1_sft/sharegpt_zh_medical.jsonl", Prompt, "sharegpt", 200, 200, {}, {}, {}),
    ("1_sft/toolcall_sharegpt_en.json", Demonstration, "sharegpt", 100, 100, {}, {}, {}),
    ("1_sft/toolcall_sharegpt_en.json", Prompt, "sharegpt", 100, 100, {}, {}, {}),
    ("1_sft/toolcall_sharegpt_zh.json", Demonstration, "sharegpt", 100, 100, {}, {}, {}),
    ("1_sft/toolcall_sharegpt_zh.json", Prompt, "sharegpt", 100, 100, {}, {}, {}),
    ("2_preference/alpacaeval_weighted_fusechat_gemma.json", Comparison, "alpacaeval", 150, 150, {}, {}, {}),
    ("2_preference/alpacaeval_weighted_fusechat_gemma.json", Prompt, "instruction", 150, 150, {}, {}, {}),
    ("2_preference/conv_chosen_str_zh.jsonl", Comparison, "ranking", 250, 250, {}, {}, {}),
    ("2_preference/conv_chosen_str_zh.jsonl", Prompt, "sharegpt", 250, 250, {}, {}, {}),
    (
        "2_preference/finegrained_qa_feedback.json",
        Comparison,
        "predictions",
        150,
        820,
        {},
        {"pairs of equal score": 80},
        {},
    ),
    ("2_preference/finegrained_qa_feedback.json", Prompt, "question", 150, 150, {}, {}, {}),
    (
        "2_preference/hh_harmless.jsonl.gz",
        Comparison,
        "hh",
        1200,
        1196,
        {"empty reply": 4},
        {},
        {"consecutive turns of one speaker merged": 2},
    ),
    ("2_preference/kto_unpaired_en.json", Demonstration, "desirable", 150, 78, {"undesirable reply": 72}, {}, {}),
    ("2_preference/kto_unpaired_en.json", Scored, "kto", 150, 150, {}, {}, {}),
    ("2_preference/kto_unpaired_en.json", Prompt, "messages", 150, 150, {}, {}, {}),
    ("2_preference/messages_pair_tiny.json", Comparison, "conversation_pair", 1, 1, {}, {}, {}),
    ("2_preference/messages_parts_pairs.jsonl", Comparison, "messages_pair", 10, 10, {}, {}, {}),
    ("2_preference/ranking_sharegpt_en.json", Comparison, "ranking", 180, 180, {}, {}, {}),
    ("2_preference/ranking_sharegpt_en.json", Prompt, "sharegpt", 180, 180, {}, {}, {}),
    ("2_preference/ranking_sharegpt_zh.json", Comparison, "ranking", 180, 180, {}, {}, {}),
    ("2_preference/ranking_sharegpt_zh.json", Prompt, "sharegpt", 180, 180, {}, {}, {}),
    ("2_preference/toolcall_pairs_zh.jsonl", Comparison, "ranking", 11, 11, {}, {}, {}),
    ("2_preference/toolcall_pairs_zh.jsonl", Prompt, "sharegpt", 11, 11, {}, {}, {}),
    ("3_coarse_comparisons/alpacaeval_gpt4_alpaca-7b.json", Comparison, "alpacaeval", 200, 197, {"tie": 3}, {}, {}),
    ("3_coarse_comparisons/alpacaeval_gpt4_alpaca-7b.json", Prompt, "instruction", 200, 200, {}, {}, {}),
    ("3_coarse_comparisons/shp_one_real_row.jsonl", Comparison, "shp", 1, 1, {}, {}, {}),
    ("3_coarse_comparisons/shp_one_real_row.jsonl", Scored, "shp", 1, 1, {}, {}, {}),
    ("3_coarse_comparisons/stack_exchange_paired.json", Comparison, "stack_exchange_paired", 25, 25, {}, {}, {}),
    ("3_coarse_comparisons/stack_exchange_paired.json", Prompt, "question", 25, 25, {}, {}, {}),
    (
        "3_coarse_comparisons/stackexchange_beer_Posts.xml.gz",
        Comparison,
        "posts",
        2354,
        1904,
        {"neither question nor answer": 119, "a single reply": 468, "no reply": 19, "tie": 86},
        {"pairs of equal score": 623},
        {},
    ),
    (
        "3_coarse_comparisons/stackexchange_beer_Posts.xml.gz",
        Scored,
        "posts",
        2354,
        644,
        {"neither question nor answer": 119, "no reply": 19},
        {},
        {},
    ),
    (
        "3_coarse_comparisons/stackexchange_beer_Posts.xml.gz",
        Prompt,
        "question",
        2354,
        663,
        {"neither question nor answer": 119},
        {},
        {},
    ),
    (
        "3_coarse_comparisons/stackexchange_coffee_Posts.xml",
        Comparison,
        "posts",
        592,
        134,
        {"neither question nor answer": 40, "a single reply": 260, "no reply": 13, "tie": 31},
        {"pairs of equal score": 24},
        {},
    ),
    (
        "3_coarse_comparisons/stackexchange_coffee_Posts.xml",
        Scored,
        "posts",
        592,
        212,
        {"neither question nor answer": 40, "no reply": 13},
        {},
        {},
    ),
    (
        "3_coarse_comparisons/stackexchange_coffee_Posts.xml",
        Prompt,
        "question",
        592,
        225,
        {"neither question nor answer": 40},
        {},
        {},
    ),
    ("4_prompts/alignbench_zh.jsonl", Prompt, "question", 340, 340, {}, {}, {}),
    ("4_prompts/alpacaeval_instructions_gpt35.json", Demonstration, "alpaca", 300, 300, {}, {}, {}),
    ("4_prompts/alpacaeval_instructions_gpt35.json", Prompt, "instruction", 300, 300, {}, {}, {}),
    ("4_prompts/belle_eval_zh.json", Prompt, "question", 400, 400, {}, {}, {}),
    ("4_prompts/ifeval.jsonl", Prompt, "prompt", 300, 300, {}, {}, {}),
    ("4_prompts/moss_ppo_train_zh.json", Prompt, "turn_list", 31, 31, {}, {}, {"reply at the end left out": 20}),
    ("4_prompts/mt_bench.jsonl", Prompt, "turns", 80, 80, {}, {}, {"later turns left out": 80}),
    ("4_prompts/vicuna_bench.jsonl", Prompt, "turns", 80, 80, {}, {}, {}),
    ("5_text/c4_en.jsonl", Document, "text", 180, 180, {}, {}, {}),
    ("5_text/en_article_gutenberg.txt", Document, "text", 500, 426, {"empty text": 74}, {}, {}),
    ("5_text/wiki_en.txt", Document, "text", 16, 16, {}, {}, {}),
    ("5_text/zh_docs_Custom-dataset.md", Document, "text", 449, 361, {"empty text": 88}, {}, {}),
    ("5_text/zh_docs_Frequently-asked-questions.md", Document, "text", 631, 496, {"empty text": 135}, {}, {}),
    ("5_text/zh_law_安全生产法(2021-06-10).md", Document, "text", 539, 270, {"empty text": 269}, {}, {}),
    ("5_text/zh_law_宪法.md", Document, "text", 785, 393, {"empty text": 392}, {}, {}),
    ("5_text/zh_law_总则.md", Document, "text", 813, 407, {"empty text": 406}, {}, {}),
    ("5_text/zh_law_物权编.md", Document, "text", 933, 467, {"empty text": 466}, {}, {}),
    ("6_checkable/grpo_zh_medical.jsonl", Demonstration, "question_answer", 32, 32, {}, {}, {}),
    ("6_checkable/grpo_zh_medical.jsonl", Prompt, "question", 32, 32, {}, {}, {}),
    (
        "6_checkable/gsm8k_model_solutions.jsonl",
        Comparison,
        "solutions",
        150,
        269,
        {"tie": 69},
        {"pairs of equal score": 217},
        {},
    ),
    ("6_checkable/gsm8k_model_solutions.jsonl", Scored, "solutions", 150, 150, {}, {}, {}),
    ("6_checkable/gsm8k_model_solutions.jsonl", Prompt, "question", 150, 150, {}, {}, {}),
    ("6_checkable/gsm8k_test.jsonl", Demonstration, "question_answer", 300, 300, {}, {}, {}),
    ("6_checkable/gsm8k_test.jsonl", Prompt, "question", 300, 300, {}, {}, {}),
    ("6_checkable/gsm8k_train.jsonl", Demonstration, "question_answer", 1000, 1000, {}, {}, {}),
    ("6_checkable/gsm8k_train.jsonl", Prompt, "question", 1000, 1000, {}, {}, {}),
    ("6_checkable/humaneval.jsonl", Prompt, "prompt", 100, 100, {}, {}, {}),
    ("6_checkable/humaneval_example_problem.jsonl", Prompt, "prompt", 1, 1, {}, {}, {}),
    ("6_checkable/rlvr_arith.jsonl", Prompt, "messages", 100, 100, {}, {}, {}),
]


@cache
def manifest_rows() -> dict[str, int]:
    text = (SHARED / "data" / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^## (\S.*)\n(?:- (?!rows).*\n)*- rows: (\d+)", text, re.MULTILINE)
    return {name: int(rows) for name, rows in found}


@pytest.mark.parametrize(
    ("name", "kind", "format", "rows", "records", "dropped", "left_out", "repaired"),
    PINNED,
    ids=[f"{row[0]}-{row[1].__name__}" for row in PINNED],
)
def test_real_file(tmp_path, name, kind, format, rows, records, dropped, left_out, repaired):
    """Rows in, records out; and what is written reads back equal."""
    path = REAL / name
    result = read(path, kind, split="lines" if path.suffix in TEXT else None)
    report = result.report
    found = (report.format, report.rows, len(result.records), report.dropped, report.left_out, report.repaired)
    assert found == (format, rows, records, dropped, left_out, repaired)
    assert report.rows == report.used + sum(report.dropped.values())
    unterminated = path.suffix in TEXT and not path.read_bytes().endswith(b"\n")  # the manifest counts line feeds
    assert report.rows == manifest_rows()[name] + unterminated
    write_jsonl(tmp_path / "x.jsonl", result.records)
    again = read(tmp_path / "x.jsonl", kind)
    assert again.records == result.records
    assert (again.report.rows, again.report.dropped, again.report.repaired) == (records, {}, {})


def test_every_file_of_the_manifest_is_pinned_or_refused():
    files = {str(path.relative_to(REAL)) for path in REAL.rglob("*") if path.is_file()}
    assert files == set(manifest_rows()) == {row[0] for row in PINNED} | set(REFUSED)


@pytest.mark.parametrize("kind", Record.__args__)
@pytest.mark.parametrize("name", REFUSED)
def test_files_without_records_are_refused_by_name(name, kind):
    with pytest.raises(DataError, match=f"{Path(name).name}, {REFUSED[name]}"):
        read(REAL / name, kind)


def test_a_text_file_is_one_document_unless_split():
    for path in sorted((REAL / "5_text").glob("*.txt")):
        (document,) = read(path, Document).records
        assert document.text == path.read_text(encoding="utf-8").strip("\n")
