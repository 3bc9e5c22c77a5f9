"""A stage's `cleaning`: what is left, what the report and the summary say of it, and what it leaves alone."""

import json

import pytest

from align.data.load import load_records, train_and_heldout
from align.recipe import RecipeError, load_recipe
from align.recipe.check import check_recipe
from align.stages.common import described
from data_formats.errors import EmptyDatasetError
from data_formats.records import Demonstration
from tests.align.stages.small_chain import small_recipe, write_data


def rows(path, *pairs):
    lines = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in pairs
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    rows(tmp_path / "a.jsonl", ("one?", "yes"), ("one?", "yes"), ("two?", "no\0"))
    rows(tmp_path / "b.jsonl", ("one?", "yes"), ("what is the colour of the tall old ship", "red"))
    (tmp_path / "exam.jsonl").write_text('{"prompt": "what is the colour of the tall old ship"}\n')
    return tmp_path


def recipe(folder, cleaning):
    return small_recipe(folder, sft__data=[{"path": "a.jsonl"}, {"path": "b.jsonl"}], sft__cleaning=cleaning)


def test_duplicates_are_found_across_sources_and_counted(folder):
    made = recipe(folder, {"decontamination": {"against": ["exam.jsonl"], "n": 5}})
    records, reports = load_records(made.sft.data, Demonstration, made, made.sft.cleaning)
    assert [one.messages[0].content for one in records] == ["one?", "two?"]
    assert records[1].messages[1].content == "no"
    assert [report.records for report in reports] == [3, 2, 2]
    summary = described("sft", reports, {})
    assert summary["unread_rows"] == {} and summary["cleaning"]["dropped"] == 3
    dropped = {step["step"]: sum(step["dropped"].values()) for step in summary["cleaning"]["steps"]}
    assert dropped["exact_duplicates"] == 2 and dropped["decontamination"] == 1


def test_held_out_files_are_taken_as_they_are(folder):
    made = recipe(folder, {})
    section = made.sft.model_copy(update={"eval_data": made.sft.data[:1]})
    train, heldout, _ = train_and_heldout(section, Demonstration, made)
    assert (len(train), len(heldout)) == (3, 3)


def test_nothing_left_says_what_cleaning_did(folder):
    made = recipe(folder, {"length": {"min_reply_chars": 99}})
    with pytest.raises(EmptyDatasetError, match=r"cleaning: 5 rows, 0 kept; dropped: .*length"):
        load_records(made.sft.data, Demonstration, made, made.sft.cleaning)


def test_check_knows_the_files_that_cleaning_compares_with(folder, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        f"name: r\noutput_dir: {tmp_path}/run\ndata_root: {folder}\nmodel: {{path: m}}\n"
        "sft:\n  data: [a.jsonl]\n  max_length: 64\n  batch_size: 2\n  micro_batch_size: 2\n  learning_rate: 0.1\n"
        "  cleaning: {decontamination: {against: [exams.jsonl]}}\n"
    )
    assert load_recipe(file).sft.cleaning.decontamination.against[0].path == "exams.jsonl"
    with pytest.raises(RecipeError, match=r"sft\.cleaning\.decontamination\.against\.0\.path: no such file"):
        check_recipe(file)
