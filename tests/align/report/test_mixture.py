"""What was drawn, as the page and the cards tell it, whatever a summary holds."""

import pytest

from align.report.mixture import in_words, mixture_table

PARTS = {
    "web.jsonl": {"rows": 24, "drawn": 32, "epochs": 1.333, "share": 0.6667},
    "good.jsonl": {"rows": 1200, "drawn": 16, "epochs": 0.013, "share": 0.3333},
}
PHASES = [
    {"name": "start", "steps": [1, 3], "drawn": {"web.jsonl": 24, "good.jsonl": 0}},
    {"name": "cool", "steps": [4, 6], "drawn": {"web.jsonl": 8, "good.jsonl": 16}},
]


def test_a_line_a_part_and_a_column_a_phase():
    table = mixture_table("sft", {"mixture": {"by": "source", "parts": PARTS, "phases": PHASES}})
    assert (table.stage, table.by) == ("sft", "source")
    assert table.header == ["part", "rows", "drawn", "times seen", "share", "start, steps 1 to 3", "cool, steps 4 to 6"]
    assert table.lines == [
        ["web.jsonl", "24", "32", "1.33", "66.7 %", "100.0 %", "33.3 %"],
        ["good.jsonl", "1,200", "16", "0.013", "33.3 %", "0.0 %", "66.7 %"],
    ]
    assert in_words({"mixture": {"by": "weight", "parts": PARTS}})[0] == "web.jsonl: 32 of 24 (1.33 times, 66.7 %)"


@pytest.mark.parametrize(
    "told",
    [
        None,
        3,
        [],
        {},
        {"parts": 3},
        {"parts": {"a": 3}},
        {"parts": {"a": {"rows": "x"}}},
        {"parts": {"a": {"rows": 1}}},
    ],
)
def test_what_is_damaged_is_left_out(told):
    assert mixture_table("sft", {"mixture": told}) is None and in_words({"mixture": told}) == []


def test_phases_that_are_damaged_are_left_out():
    for phases in (3, [3], [{"name": "x"}], [{"drawn": 3}]):
        assert mixture_table("sft", {"mixture": {"parts": PARTS, "phases": phases}}).header[-1] == "share"
