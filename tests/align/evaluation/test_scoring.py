import pytest

from align.evaluation import scoring
from align.evaluation.scoring import score_comparisons
from data_formats.records import Comparison, Message
from reward.protocol import RewardError
from reward.scoring import checked

PAIRS = [Comparison((Message("user", str(at)),), "c" * at, "r") for at in range(5)]


class ByLength:
    name = "length"

    def score(self, samples):
        scores = [
            float(len(sample.completion)) if sample.prompt[0].content != "4" else float("nan") for sample in samples
        ]
        return checked(scores, len(samples), self.name)


def test_order_and_progress_over_several_chunks(monkeypatch):
    monkeypatch.setattr(scoring, "AT_ONCE", 6)
    done = []
    chosen, rejected = score_comparisons(ByLength(), PAIRS[:4], done.append)
    assert (chosen, rejected, done) == ([0.0, 1.0, 2.0, 3.0], [1.0] * 4, [3, 4])


def test_a_score_that_is_no_number_is_found_again(monkeypatch):
    monkeypatch.setattr(scoring, "AT_ONCE", 6)
    with pytest.raises(RewardError, match=r"gave nan for reply 2 .*among the pairs 4 to 5"):
        score_comparisons(ByLength(), PAIRS)


def test_each_side_is_scored_after_its_own_turns():
    sides = [(Message("assistant", text), Message("user", "p")) for text in ("one", "longer")]
    seen = []

    class Spy(ByLength):
        def score(self, samples):
            seen.extend((sample.prompt, sample.completion) for sample in samples)
            return super().score(samples)

    ask = (Message("user", "q"),)
    score_comparisons(Spy(), [Comparison(ask, "a", "b", chosen_turns=sides[0], rejected_turns=sides[1])])
    assert seen == [((*ask, *sides[0]), "a"), ((*ask, *sides[1]), "b")]
