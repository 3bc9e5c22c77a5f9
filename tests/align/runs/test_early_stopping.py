import math

import pytest

from align.recipe.section import EarlyStoppingSection
from align.runs.early_stopping import reason_to_end


def lines(name, *values):
    found = [{"step": step, name: value} for step, value in enumerate(values)]
    return [line for one in found for line in (one, {"step": one["step"], "loss": 0.0})]  # others between them


@pytest.mark.parametrize(
    ("name", "values", "keys", "words"),
    [
        ("eval_loss", [3, 2, 1], {"patience": 1}, None),
        ("eval_loss", [3, 2, 2], {"patience": 1}, "eval_loss has not become better than 2 (step 1) in 1 evaluation"),
        ("eval_loss", [3, 2, 2.5, 1.9], {"patience": 1}, None),
        ("eval_loss", [3, 2, 2.5], {"patience": 2}, None),
        ("eval_loss", [3, 2.5, 2.4], {"patience": 2, "min_delta": 1}, "better than 3 (step 0) in 2 evaluations"),
        ("eval/score", [0.5, 0.4, 0.3], {"patience": 2}, "eval/score has not become better than 0.5 (step 0)"),
        ("eval/score", [0.5, 0.6, 0.7], {"patience": 1}, None),
        ("eval_loss", [math.nan, None], {"patience": 2}, "eval_loss has never been finite in 2 evaluations"),
        ("eval_loss", [2, math.inf, 1], {"patience": 2}, None),
        ("eval_loss", [], {"patience": 1}, None),
    ],
)
def test_how_long_is_waited(name, values, keys, words):
    found = reason_to_end(lines(name, *values), name, EarlyStoppingSection(**keys))
    assert found is None if words is None else words in found


def test_what_is_evaluated_before_anything_was_trained_is_not_waited_for():
    same = lines("eval/score", 0.5, 0.5, 0.5, 0.4)
    assert "in 3 evaluations" in reason_to_end(same, "eval/score", EarlyStoppingSection(patience=1))
    assert reason_to_end(same[:6], "eval/score", EarlyStoppingSection(patience=1), after=2) is None
    assert "in 1 evaluation" in reason_to_end(same, "eval/score", EarlyStoppingSection(patience=1), after=2)
