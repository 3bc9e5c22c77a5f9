import pytest

from align.evaluation.accuracy import JudgedPair, accuracy, grade_names, most_wrong, parts, won_share
from align.evaluation.shares import wilson


def test_accuracy_beside_length_alone():
    pairs = [JudgedPair(1.0, 5), JudgedPair(0.0, -5), JudgedPair(2.0, 0), JudgedPair(-1.0, None)]
    found = accuracy(pairs, longer_wins=True)
    assert (found["accuracy"], found["correct"], found["pairs"]) == (0.5, 2, 4)  # equal scores are wrong
    assert found["length_baseline"] == pytest.approx((1 + 0.5) / 3)  # where lengths are known, equal ones a toss
    assert accuracy(pairs[:1], longer_wins=False)["length_baseline"] == 0.0
    assert accuracy([JudgedPair(1.0, None)], longer_wins=True)["length_baseline"] is None
    assert won_share([]) is None


def test_pairs_of_one_prompt_are_not_counted_as_independent():
    found = accuracy([JudgedPair(1.0, 0, prompt="q") for _ in range(6)], longer_wins=True)
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(1, 1)
    found = accuracy([JudgedPair(1.0, 0) for _ in range(6)], longer_wins=True)
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(6, 6)


def test_parts_by_hand():
    pairs = [
        JudgedPair(1.0, 3, "maths", "a.jsonl", 2.0, ("x", "y", "x")),
        JudgedPair(-1.0, 3, "maths", "b.jsonl", 10.0, ("y",)),
        JudgedPair(1.0, -3, "", "", None, ()),
        JudgedPair(1.0, -3, "code", "b.jsonl", float("nan"), ()),
    ]
    found = parts(pairs, longer_wins=False)
    counts = {
        key: {name: (part["correct"], part["pairs"], part["length_baseline"]) for name, part in by.items()}
        for key, by in found.items()
    }
    assert counts == {
        "by_source": {"a.jsonl": (1, 1, 0.0), "b.jsonl": (1, 2, 0.5)},
        "by_grade": {"2": (1, 1, 0.0), "10": (0, 1, 0.0)},
        "by_category": {"code": (1, 1, 1.0), "maths": (1, 2, 0.0)},
        "by_tag": {"x": (1, 1, 0.0), "y": (1, 2, 0.0)},
        "by_length_gap": {"within 10": (3, 4, 0.5)},
    }
    assert list(found["by_grade"]) == ["2", "10"]  # by size, not by the alphabet


def test_length_gaps_stand_in_their_order():
    gaps = (-199, -50, -5, 5, 50, 200)
    found = parts([JudgedPair(1.0, gap) for gap in reversed(gaps)], longer_wins=True)["by_length_gap"]
    assert [(name, part["pairs"]) for name, part in found.items()] == [
        ("shorter by over 100", 1),
        ("shorter by 11 to 100", 1),
        ("within 10", 2),
        ("longer by 11 to 100", 1),
        ("longer by over 100", 1),
    ]


def test_few_grades_keep_their_names_and_many_are_binned():
    assert grade_names([3.0, 0.25, 3.0]) == {0.25: "0.25", 3.0: "3"}
    assert grade_names([]) == {}
    named = grade_names([float(value) for value in range(12, 0, -1)])  # two of twelve in each sixth
    assert named[1.0] == named[2.0] == "1 to 2" and named[11.0] == named[12.0] == "11 to 12"
    assert list(dict.fromkeys(named.values())) == ["1 to 2", "3 to 4", "5 to 6", "7 to 8", "9 to 10", "11 to 12"]


def test_equal_grades_are_never_parted_and_names_tell_bins_apart():
    few = [float(value) for value in range(1, 13)]
    low = grade_names([0.0] * 100 + few)  # 0 has the middle rank 50 of 112, third sixth; the others the last
    assert list(dict.fromkeys(low.values())) == ["0", "1 to 12"]
    high = grade_names([13.0] * 100 + few)
    assert list(dict.fromkeys(high.values())) == ["1 to 12", "13"]
    close = grade_names([1 + at / 1e6 for at in range(12)])
    assert len(set(close.values())) == 6 and close[1.0] == "1 to 1.000001"


def test_most_wrong():
    assert most_wrong([1.0, -3.0, -0.5, 0.0, -7.0], 2) == [4, 1]
