"""The cleaning section: what is on by default, bounds, and sentences about what cannot be meant."""

import pytest
from pydantic import ValidationError

from align.recipe.cleaning_section import CleaningSection, RepetitionSection
from data_formats.cleaning.repetition import DUPLICATE_NGRAMS, TOP_NGRAMS


def on(section):
    return {name for name in type(section).model_fields if getattr(section, name)}


def test_only_what_no_training_can_want_is_on_by_default():
    assert on(CleaningSection()) == {"nul_bytes", "lone_surrogates", "empty_replies", "exact_duplicates"}


def test_steps_are_switched_on_by_an_empty_section_and_off_by_null():
    section = CleaningSection.model_validate(
        {"repetition": {}, "near_duplicates": {"threshold": 0.7}, "exact_duplicates": None, "nul_bytes": None}
    )
    assert on(section) == {"lone_surrogates", "empty_replies", "repetition", "near_duplicates"}


def test_repetition_has_gophers_limits():
    section = RepetitionSection()
    assert (section.top_ngrams, section.duplicate_ngrams) == (TOP_NGRAMS, DUPLICATE_NGRAMS)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"spelling": {}}, "spelling"),
        ({"nul_bytes": "replace"}, "nul_bytes"),
        ({"near_duplicates": {"threshold": 0.99}}, "near_duplicates.threshold"),
        ({"near_duplicates": {"num_perm": 8}}, "near_duplicates.num_perm"),
        ({"near_duplicates": {"unit": "token"}}, "near_duplicates.unit"),
        ({"decontamination": {}}, "decontamination.against"),
        ({"decontamination": {"against": []}}, "decontamination.against"),
        ({"decontamination": {"against": ["a"], "n": 2}}, "decontamination.n"),
        ({"repetition": {"lines": 1.5}}, "repetition.lines"),
        ({"repetition": {"top_ngrams": {0: 0.1}}}, "repetition.top_ngrams"),
        ({"apologies": {"keep": -0.1}}, "apologies.keep"),
        ({"length": {}}, "names no limit; set one"),
        (
            {"length": {"min_reply_chars": 9, "max_reply_chars": 8}},
            "min_reply_chars: 9 is more than max_reply",
        ),
        (
            {"nul_bytes": None, "lone_surrogates": None, "empty_replies": False, "exact_duplicates": None},
            "switches every step off; remove the section",
        ),
    ],
)
def test_what_cannot_be_meant(raw, said):
    with pytest.raises(ValidationError, match=said):
        CleaningSection.model_validate(raw)
