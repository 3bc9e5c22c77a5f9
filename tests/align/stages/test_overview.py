import re
from types import SimpleNamespace

import pytest

from align.stages.overview import _took, headline, print_table


def cells(stage, summary):
    return [tuple(line) for line in headline(stage, summary)]


def test_base_stands_beside_the_unigram_entropy():
    assert cells("base", {"heldout_loss": 0.54321, "unigram_entropy": 4.2}) == [
        ("held-out loss, nats a token", "4.2 (unigram entropy)", "0.5432")
    ]


def test_reward_stage_shows_interval_and_baseline():
    summary = {
        "accuracy": 0.8,
        "accuracy_low": 0.775,
        "accuracy_high": 0.823,
        "accuracy_before": 0.66,
        "pairs": 1200,
        "by_tag": {"correctness": {"accuracy": 0.7, "pairs": 480}},
        "length_baseline": 0.55,
        "majority_baseline": 0.51,
    }
    lines = cells("rm", summary)
    assert lines[0] == ("accuracy on 1200 held-out pairs", "66.0 %", "80.0 % [77.5 %, 82.3 %]")
    assert ("  those tagged correctness (480)", "", "70.0 %") in lines
    assert ("  by length alone", "", "55.0 %") in lines
    assert ("  by the side that won more often", "", "51.0 %") in lines
    assert cells("pmp", {**summary, "accuracy_before": None})[0][1] == "50.0 % (chance)"


def test_rows_a_hook_adds_are_shown():
    assert ("gold score", "", "0.5") in cells("sft", {"heldout_loss": 1.0, "headline": [["gold score", None, 0.5]]})
    assert ("  the best, of step", "", "40 of 60") in cells("sft", {"best_step": 40, "steps": 60})


def test_seconds_of_a_continued_stage_say_from_where_they_count():
    assert (_took(12.4, 0), _took(12.4, None), _took(12.4, 40), _took(None, 40)) == ("12", "12", "12, from step 40", "")


RM = {"accuracy": 0.8, "accuracy_low": 0.775, "accuracy_high": 0.823, "accuracy_before": 0.66, "pairs": 12000}
RM |= {"by_tag": {"correctness": {"accuracy": 0.7, "pairs": 480}}, "length_baseline": 0.55, "majority_baseline": 0.51}
ROWS = [
    ["gold, temperature 1", 0.4312345, 0.9412345],
    ["win / tie / loss, temperature 1", None, "1697 / 296 / 407"],
    ["held-out reward [/brackets], temperature 1", "0.43 (some)", "0.59 [+0.51, +0.67]"],
]
SUMMARY = {
    "base": {"heldout_loss": 0.54321, "unigram_entropy": 4.2345},
    "sft": {"heldout_loss": 0.4, "heldout_loss_before": 5.4321, "end_rate": 1.0, "best_step": 40, "steps": 60},
    "pmp": RM | {"accuracy_before": None},
    "rm": RM | {"resumed_from": 120},
    "rejection": {"headline": ROWS},
    "ppo": {"headline": ROWS, "resumed_from": 40},
}
SUMMARY |= {"seconds": dict.fromkeys(SUMMARY, 12.3), "peak_memory_gib": 1.5}


@pytest.mark.parametrize("stages", [("base", "sft", "pmp", "rm", "ppo"), ("sft", "rejection"), ()])
def test_the_table_fits_80_columns_without_broken_words(stages, capsys):
    print_table(SimpleNamespace(name="quickstart", seed=0, stages=stages, output_dir="runs/quickstart"), SUMMARY)
    out = capsys.readouterr().out
    talk = "Talk to it: align chat runs/quickstart --against sft" if stages else "Everything is in"
    assert out.splitlines()[-1].startswith(talk)
    table = out.partition(" s in all")[0]
    assert max(map(len, table.splitlines())) <= 80
    shown = set(table.split())
    for stage in stages:
        cells = [stage, *(cell for line in headline(stage, SUMMARY[stage]) for cell in line)]
        assert {word for cell in cells for word in cell.split()} <= shown
    if "rm" in stages:  # each figure in one piece, its interval below
        accuracy = r"accuracy on 12000 held-out pairs +66\.0 % +80\.0 % +12, from\n +\[77\.5 %, 82\.3 %\] +step 120\n"
        assert re.search(accuracy, table), table
        assert "win / tie / loss, temperature 1" in table and "1697 / 296 / 407" in table
