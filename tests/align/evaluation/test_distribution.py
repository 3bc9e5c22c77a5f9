import pytest

from align.evaluation.distribution import distribution, lines


def test_figures_by_hand():
    found = distribution([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found["count"], found["mean"], found["min"], found["max"]) == (5, 3.0, 1.0, 5.0)
    assert found["std"] == pytest.approx(2**0.5)
    assert found["quantiles"] == pytest.approx({"0.05": 1.2, "0.25": 2.0, "0.5": 3.0, "0.75": 4.0, "0.95": 4.8})
    counts = [count for *_, count in found["histogram"]]
    assert [at for at, count in enumerate(counts) if count] == [0, 5, 10, 15, 19] and sum(counts) == 5
    assert found["histogram"][0][:2] == pytest.approx([1.0, 1.2]) and found["histogram"][-1][1] == 5.0


def test_one_value_nothing_and_the_largest_numbers():
    assert distribution([]) == {"count": 0} and lines({"count": 0}) == ["no reply has a score"]
    assert distribution([2.0, 2.0])["histogram"] == [[2.0, 2.0, 2]]
    assert sum(count for *_, count in distribution([-1.7e308, 1.7e308])["histogram"]) == 2
    shown = lines(distribution([0.0] * 3 + [1.0]))
    assert shown[0].startswith("mean 0.25  sd 0.433  min 0  5% 0") and len(shown) == 21
    assert shown[1].count("█") == 40 and shown[-1].count("█") == 13
