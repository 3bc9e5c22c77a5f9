import math

import pytest

from align.evaluation import preference
from data_formats.records import Comparison, Message


def pair(chosen, rejected, prompt="q", **more):
    return Comparison((Message("user", prompt),), chosen, rejected, **more)


LONGER_WON = [pair("long reply", "short"), pair("longest reply", "x")]
SHORTER_WON = [pair("x", "long reply")]
HELD_OUT = [pair("aaaa", "b", "p"), pair("a", "bbbb", "q"), pair("ccc", "d", "r"), pair("ee", "ff", "s")]


def test_length_takes_its_direction_from_training():
    scores = [1.0] * 4, [0.0] * 4
    longer = preference.evaluate(HELD_OUT, *scores, train=LONGER_WON)
    shorter = preference.evaluate(HELD_OUT, *scores, train=SHORTER_WON)
    assert longer["length_baseline"] == pytest.approx((2 + 0.5) / 4)
    assert shorter["length_baseline"] == pytest.approx((1 + 0.5) / 4)
    assert shorter["length_rule"] == {"longer_wins": False, "from": "training pairs", "longer": 0.625, "shorter": 0.375}
    assert shorter["by_length_gap"]["within 10"]["length_baseline"] == 0.375


def test_without_training_pairs_the_better_direction_is_taken_and_named():
    swapped = [pair(one.rejected, one.chosen) for one in HELD_OUT]
    found = preference.evaluate(swapped, [1.0] * 4, [0.0] * 4)
    assert found["length_rule"] == {"longer_wins": False, "from": "these pairs", "longer": 0.375, "shorter": 0.625}
    assert found["length_baseline"] == 0.625


def test_majority_baseline_answers_the_side_that_won_more_often():
    held_out = [pair("a", "b"), pair("f", "e"), pair("g", "h")]
    left_wins = [pair("a", "b"), pair("c", "d"), pair("z", "y")]
    assert preference.majority_baseline(left_wins, held_out) == pytest.approx(2 / 3)
    assert preference.majority_baseline([pair("b", "a")], held_out) == pytest.approx(1 / 3)


def test_score_summary():
    found = preference.score_summary([1.0, 3.0], [0.0, 0.0])
    assert found["chosen"] == {"mean": 2.0, "std": 1.0, "min": 1.0, "median": 2.0, "max": 3.0}
    assert found["rejected"]["std"] == 0.0


def test_every_figure_of_four_pairs_by_hand():
    held_out = [pair("aa", "b", at, category="c", tags=("t",), grade=1.0, source="s") for at in ("p", "p", "p", "p")]
    found = preference.evaluate(held_out, [2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 2.0])
    assert (found["accuracy"], found["margin"], found["accuracy_t"]) == (0.75, 1.0, 0.75)
    for name, key in (("c", "by_category"), ("t", "by_tag"), ("1", "by_grade"), ("s", "by_source")):
        assert found[key][name]["correct"] == 3
    assert found["temperature"] == pytest.approx(2 / math.log(3), rel=1e-6)
    assert found["calibration_error"] == pytest.approx(1 / (1 + math.exp(-2)) - 0.75)
    assert found["calibration_error_at_temperature"] is found["reliability_at_temperature"] is None  # one prompt
    more = preference.evaluate(
        [*held_out, pair("aa", "b", "other")], [2.0, 2.0, 2.0, 0.0, 2.0], [0.0, 0.0, 0.0, 2.0, 0.0]
    )
    # the one pair of the other prompt is right: fitted on it, T is the least (0.001), at which the four are sure
    other = 1 / (1 + math.exp(-math.log(3)))
    assert more["calibration_error_at_temperature"] == pytest.approx((4 * 0.25 + (1 - other)) / 5, rel=1e-6)
    assert preference.evaluate([], [], []) == {}


def test_lines_keep_every_pair_and_the_worst_first():
    found = preference.lines(HELD_OUT, [1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 5.0, 0.0])
    assert [row["chosen"] for row in found["eval.jsonl"]] == ["aaaa", "a", "ccc", "ee"]
    assert [row["chosen"] for row in found["most_wrong.jsonl"]] == ["ccc", "a"]
    assert found["eval.jsonl"][0]["prompt"] == [{"role": "user", "content": "p"}]


def test_a_tag_called_low_does_not_touch_the_interval():
    pairs = [Comparison((Message("user", f"q{at}"),), "a", "b", tags=("low",) if at == 0 else ()) for at in range(50)]
    figures = preference.evaluate(pairs, [0.0] + [1.0] * 49, [1.0] + [0.0] * 49)
    assert figures["by_tag"]["low"]["accuracy"] == 0.0
    assert 0.85 < figures["accuracy_low"] < 0.98


def test_what_was_thought_is_part_of_a_reply():
    one = pair("51", "51", chosen_reasoning="17*3 = 51")
    found = preference.line(one, 1.0, 0.0)
    assert (found["chosen"], found["rejected"]) == ("<think>\n17*3 = 51\n</think>\n\n51", "51")
    assert preference.longer_wins([one]) and not preference.longer_wins([one.swapped()])
    assert preference.majority_baseline([one], [one]) == 1.0
