"""The parameters refuse what cannot be sampled."""

import math

import pytest

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"max_new_tokens": 3, "min_new_tokens": 4},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(RolloutError, match=list(wrong)[-1]):
        SamplingParams(**wrong)
