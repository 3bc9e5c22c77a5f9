import numpy as np
import pytest
from transformers import EvalPrediction

from align.evaluation.heldout import LossByCategory, loss_figures


def judged(*rows):
    return EvalPrediction(np.array(rows, dtype=np.float64), np.zeros(len(rows)))


def test_the_mean_is_over_tokens_and_not_over_rows():
    found = LossByCategory(["maths", "", "code", "maths"])(judged((6.0, 2), (8.0, 8), (1.0, 4), (3.0, 7)))
    assert found == {
        "loss": pytest.approx(18 / 21),
        "tokens": 21,
        "loss/maths": pytest.approx(9 / 9),
        "tokens/maths": 9,
        "loss/code": pytest.approx(1 / 4),
        "tokens/code": 4,
    }


def test_rows_and_categories_must_be_as_many():
    with pytest.raises(ValueError, match="2 rows were judged, but 1 have a category"):
        LossByCategory(["maths"])(judged((1.0, 1), (1.0, 1)))


def test_figures_of_logged_metrics():
    logged = {"eval_loss": 0.5, "eval_tokens": 30, "eval_loss/a/b": 0.25, "eval_tokens/a/b": 10, "eval_runtime": 1.0}
    assert loss_figures(logged) == {
        "heldout_loss": 0.5,
        "by_category": {"a/b": {"heldout_loss": 0.25, "heldout_tokens": 10}},
    }
