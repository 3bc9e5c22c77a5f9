"""What each annotator leans to, by hand and with numbers that are known."""

from __future__ import annotations

import math
import random

import pytest

from align.feedback.annotators import about_annotators
from align.feedback.votes import votes_of
from tests.align.feedback.made import item, judgment


def test_by_hand():
    two, three = item("two", "short", "a long one"), item("three", "1", "22", "333")
    said = [
        (two, judgment("two", "ann", [["r1"], ["r0"]], "better", shown=("r1", "r0"), seconds=4.0)),
        (three, judgment("three", "ann", [["r0"], ["r1", "r2"]], "slightly", seconds=8.0, unsafe=("r1",))),
        (two, judgment("two", "ben", [], shown=("r0", "r1"), all_bad=True, edited={"of": "r0", "text": "x"})),
        (three, judgment("three", "ben", [["r0", "r1"], ["r2"]], "better", seconds=1.0)),
    ]
    found = about_annotators(said)
    ann, ben = found["annotators"]["ann"], found["annotators"]["ben"]
    assert [ann[name] for name in ("judgments", "seconds", "tied", "all_bad", "unsafe", "edited")] == [2, 6, 0, 0, 1, 0]
    assert [ben[name] for name in ("judgments", "seconds", "tied", "all_bad", "unsafe", "edited")] == [
        2,
        0.5,
        1,
        1,
        0,
        1,
    ]
    first = ann["first_shown"]
    assert (first["share"], first["number"], first["expected"]) == (1.0, 2, pytest.approx(5 / 12))
    assert first["low"] == pytest.approx(1 / (1 + 1.959963984540054**2 / 2)) and first["high"] == 1.0  # Wilson, 2 of 2
    assert (ben["first_shown"]["share"], ben["first_shown"]["expected"]) == (None, None)
    assert (ann["longer"]["share"], ann["longer"]["number"]) == (1 / 3, 3)
    assert (ben["longer"]["share"], ben["longer"]["number"], ben["longer"]["weight"]) == (0.0, 2, None)
    assert ann["error"] is ben["error"] is None
    assert found["agreement"]["units"] == 3  # the pairs of item three
    (between,) = found["agreement"]["between"]
    assert (between["equal"], between["number"]) == (1 / 3, 3)
    # Their verdicts are (first, tie), (first, first), (tie, first): four firsts, two ties, which are 6 - 3 ranks apart.
    assert found["agreement"]["alpha"] == pytest.approx(1 - (6 - 1) * (4 * 3**2) / (2 * 4 * 2 * 3**2))


def test_a_vote_says_what_was_shown_earlier_and_how_far_the_best_is_from_the_others():
    three = item("three", "1", "22", "333")
    said = judgment("three", "ann", [["r1"], ["r2"], ["r0"]], "significantly", shown=("r2", "r0", "r1"))
    votes = list(votes_of(three, said))
    assert [(one.first.id, one.second.id, one.winner, one.grade) for one in votes] == [
        ("r0", "r1", "second", 4),
        ("r0", "r2", "second", None),
        ("r1", "r2", "first", 4),
    ]
    assert [one.first_was_earlier for one in votes] == [True, False, False]


def test_known_leans_are_found():
    rng = random.Random(0)
    judged = []
    for at in range(600):
        lengths = rng.sample(range(10, 200), 2)
        on = item(f"i{at}", "a" * lengths[0], "b" * lengths[1])
        better = rng.choice(("r0", "r1"))
        worse = {"r0": "r1", "r1": "r0"}[better]
        longer = "r0" if lengths[0] > lengths[1] else "r1"
        for who, lean in (("fair", None), ("first", "position"), ("long", "length")):
            shown = tuple(rng.sample(("r0", "r1"), 2))
            best = better if rng.random() > 0.1 else worse
            if lean and rng.random() < 0.4:
                best = shown[0] if lean == "position" else longer
            ranking = [[best], [({"r0", "r1"} - {best}).pop()]]
            judged.append((on, judgment(on.id, who, ranking, "better", shown=shown)))
    found = about_annotators(judged)["annotators"]
    for who, position, length in (("fair", 0.5, 0.5), ("first", 0.7, 0.5), ("long", 0.5, 0.7)):
        for name, share in (("first_shown", position), ("longer", length)):
            part = found[who][name]
            assert abs(part["share"] - share) < 0.05 and part["high"] - part["low"] < 0.09
            assert (part["low"] < 0.5 < part["high"]) is (share == 0.5)
    assert abs(found["fair"]["longer"]["weight"]) < 0.5 < 1 < found["long"]["longer"]["weight"]
    assert math.isclose(found["first"]["error"]["lean"], 0.2, abs_tol=0.05)
    for who, wrong in (("fair", 0.1), ("first", 0.26), ("long", 0.26)):
        assert abs(found[who]["error"]["rate"] - wrong) < 0.05
