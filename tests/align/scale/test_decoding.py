"""Sampling and its seconds, by hand."""

import pytest

from align.plan.models import trained_model
from align.plan.shapes import Shape
from align.recipe.model_section import ModelSection
from align.recipe.ppo_section import PolicyOptim
from align.scale.cards import Card, Cluster
from align.scale.decoding import Decoding, steps
from align.scale.efficiency import Efficiency
from align.scale.layout import Layout

CARD = Card("one", 1000.0, 100.0, 10**9, 10.0, 1.0, 5.0)
SHAPE = Shape(10, 8, 12, 2, 2, 1, 4, False)
LINEAR, HEAD = 2 * (2 * 64 + 2 * 32 + 3 * 96), 80  # as in tests/align/plan/test_cost.py
POLICY = trained_model("policy", SHAPE, ModelSection(path="unused"), PolicyOptim())
HALF = Efficiency(prefill=0.5, decode=0.5, bandwidth=0.5, step=0.25, hop=0.125)


def test_replies_of_unlike_length_leave_and_waiting_ones_begin():
    # two at once: 1 and 3; the one ends, 2 begins behind the same prompt; at step 3 both end
    assert list(steps([1, 3, 2], 2, 10)) == [(1, 2, 20), (2, 2, (10 + 1 + 10) + 2 * 0.5)]
    assert list(steps([4], 8, 5)) == [(4, 1, 5 + 1.5)]  # behind it 5, 6, 7, 8 tokens
    assert list(steps([2, 2, 2], 2, 0)) == [(2, 2, 1.0), (2, 1, 0.5)]
    assert sum(count * rows for count, rows, _ in steps([5, 1, 9, 3, 3], 2, 7)) == 21
    assert list(steps([], 2, 1)) == []


def decoding(parallel=1, slots=2):
    layout = Layout(Cluster(CARD, 2), 1, "one", 1, parallel)
    return Decoding(
        POLICY, layout, HALF, 1, slots, weights=60.0, token=5.0, longest=9, flops_a_token=30.0, flops_a_pair=2.0
    )


def test_a_step_takes_what_it_reads_or_what_it_computes():
    one = decoding()
    # 4 steps, one reply: 60 + 5 * 6.5 bytes of 50 a second; 30 + 2 * 6.5 FLOPs of 500; 0.25 s besides
    assert one.needs([4], 5) == pytest.approx(
        {"memory": 4 * (92.5 / 50 + 0.25), "compute": 4 * (43 / 500 + 0.25), "latency": 1.0}
    )
    assert one.seconds([4], 5) == pytest.approx(4 * (92.5 / 50 + 0.25))
    # on two cards half of each, and two sums a layer of two layers
    assert decoding(2).seconds([4], 5) == pytest.approx(4 * (92.5 / 100 + 0.25 + 4 * 0.125))
    # two slots: three replies of 2 tokens take two turns
    assert one.seconds([2, 2, 2], 0) == pytest.approx(2 * (65 / 50 + 0.25) + 2 * (62.5 / 50 + 0.25))


def test_prompts_are_read_at_the_peak_of_the_engines_cards():
    # 3 tokens, 6 pairs, one state for the head
    work = 2 * LINEAR * 3 + 4 * 8 * 2 * 6 + 2 * HEAD
    assert decoding().prefill(4, 3) == pytest.approx(4 * work / 500)
    assert decoding(2).prefill(4, 3) == pytest.approx(4 * work / 1000)
