"""Real files: the odd rows that a scan of them lists are found, and ordinary rows stay.

The files are not part of the project; they lie in shared/ beside the repository, or where ALIGN_SHARED says.
"""

import os
from pathlib import Path

import pytest

from data_formats import Comparison, Demonstration, Document, Prompt, read
from data_formats.cleaning import (
    Cleaner,
    Decontamination,
    ExactDuplicates,
    InvisibleCharacters,
    MismatchedRoles,
    NearDuplicates,
    Repetition,
    ReplacementCharacters,
)

REAL = Path(os.environ.get("ALIGN_SHARED", Path(__file__).parents[4] / "shared")) / "data" / "real"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no shared/data/real beside the repository")


def found(step, records):
    """0-based numbers of the records in which a step finds something."""
    return [number for number, record in enumerate(records) if step.check(record) is not None]


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [
        ("1_sft/alpaca_en.json", Demonstration, [275]),
        ("1_sft/alpaca_zh.json", Demonstration, [516, 597, 611]),
        ("1_sft/messages_parts.jsonl", Demonstration, [325]),
        ("2_preference/ranking_sharegpt_en.json", Comparison, [157]),
        ("2_preference/ranking_sharegpt_zh.json", Comparison, [82, 136]),
    ],
)
def test_exact_duplicates(name, kind, rows):
    assert found(ExactDuplicates(), read(REAL / name, kind).records) == rows


def test_broken_text_and_invisible_characters():
    pairs = read(REAL / "2_preference/conv_chosen_str_zh.jsonl", Comparison).records
    assert found(ReplacementCharacters(), pairs) == [20, 49, 217, 239]
    ranking = read(REAL / "2_preference/ranking_sharegpt_zh.json", Comparison).records
    assert found(ReplacementCharacters(), ranking) == [41, 55, 123]
    pages = read(REAL / "5_text/c4_en.jsonl", Document).records
    assert found(ReplacementCharacters(), pages) == [10, 93, 108, 164]
    assert found(InvisibleCharacters(), pages) == [147]


def test_what_the_readers_return_is_in_order():
    for name, kind in (
        ("1_sft/sharegpt_zh.jsonl.gz", Demonstration),
        ("2_preference/hh_harmless.jsonl.gz", Comparison),
    ):
        assert found(MismatchedRoles(), read(REAL / name, kind).records) == []


def test_gsm8k_training_rows_do_not_hold_its_test_questions():
    test = read(REAL / "6_checkable/gsm8k_test.jsonl", Prompt).records
    train = read(REAL / "6_checkable/gsm8k_train.jsonl", Prompt).records
    step = Decontamination(test)
    assert found(step, train) == []
    assert found(step, test) == list(range(300))


def test_repetition_takes_few_of_the_ordinary_rows():
    for name, most in (("1_sft/alpaca_en.json", 0.03), ("1_sft/alpaca_zh.json", 0.03)):
        records = read(REAL / name, Demonstration).records
        assert len(found(Repetition(), records)) <= most * len(records)


def test_near_duplicates_are_the_exact_ones_where_there_are_no_others():
    records = read(REAL / "1_sft/alpaca_zh.json", Demonstration).records
    cleaner = Cleaner([NearDuplicates(threshold=0.8)])
    kept = list(cleaner.clean(records))
    near = [number for number, record in enumerate(records) if not any(record is other for other in kept)]
    assert near == [516, 597, 611]
