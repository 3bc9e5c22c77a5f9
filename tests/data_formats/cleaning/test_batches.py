"""Batches in any number of processes: the rows and the counts of the command that reads the file at once."""

import json
import pickle
import random

import pytest

from data_formats import DataError, Demonstration, Document, EmptyDatasetError, Message, Prompt, stream, write_jsonl
from data_formats.cleaning import (
    BatchCleaner,
    Cleaner,
    Decontamination,
    Emoji,
    EmptyReplies,
    ExactDuplicates,
    NulBytes,
    steps_alone,
    write_batches,
)

ASKED = "What is the answer to the great question of life, of the universe and of everything?"
EVALUATION = [Prompt((Message("user", ASKED),))]


def lines(count):
    rng = random.Random(0)
    said = (
        "yes",
        "no\x00",
        " ",
        "😀😀😀😀",
        "fine <|im_end|>",
        ASKED,
        "是的 \u2028 second",
    )
    for number in range(count):
        turns = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": rng.choice(said)}]
        yield json.dumps({"messages": turns, "extra": number}, ensure_ascii=False)


def steps():
    return [NulBytes(), EmptyReplies(), Emoji(), Decontamination(EVALUATION)]


def batches(all_lines, size):
    return [{"text": all_lines[at : at + size]} for at in range(0, len(all_lines), size)]


def rows_of(cleaned):
    for batch in cleaned:
        for line, report in zip(batch["line"], batch["report"], strict=True):
            yield {"line": line, "report": report}


@pytest.mark.parametrize("size", [1, 7, 100])
def test_rows_and_counts_are_those_of_the_whole_file(tmp_path, size):
    file, whole, out = tmp_path / "talk.jsonl", tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(f"{line}\n" for line in [*lines(100), " "]), encoding="utf-8")
    rows, cleaner = stream(file, Demonstration), Cleaner(steps())
    write_jsonl(whole, cleaner.clean(rows))
    clean = pickle.loads(pickle.dumps(BatchCleaner(steps(), Demonstration, "messages", name=str(file))))
    read_report, report = write_batches(out, rows_of(map(clean, batches([*lines(100), " "], size))))
    assert out.read_bytes() == whole.read_bytes()
    assert report == cleaner.report and report.dropped > 20
    assert read_report.describe() == rows.report.describe() and "extra" in read_report.passed_over


def test_what_compares_records_is_not_for_batches():
    both = [NulBytes(), ExactDuplicates(), Emoji()]
    alone, others = steps_alone(both)
    assert [step.name for step in (*alone, *others)] == ["nul_bytes", "emoji", "exact_duplicates"]
    with pytest.raises(ValueError, match="exact_duplicates compares records with one another"):
        BatchCleaner(both, Demonstration, "messages")
    with pytest.raises(DataError, match="unknown demonstration format 'auto'"):
        BatchCleaner([], Demonstration, "auto")


def test_a_malformed_line_is_named_and_no_batch_at_all_is_an_error(tmp_path):
    clean = BatchCleaner([], Document, "text")
    with pytest.raises(DataError, match="lines of a batch, line 2: not a JSON value"):
        clean({"text": ['{"text": "a"}', "{"]})
    with pytest.raises(EmptyDatasetError, match="no batch was cleaned"):
        write_batches(tmp_path / "none.jsonl", [])
    assert not (tmp_path / "none.jsonl").exists()
