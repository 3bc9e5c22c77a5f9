import math

import pytest

from align.stages.run_base import unigram_entropy


def test_by_hand():
    # training counts a:3 b:1 over a vocabulary of 4, one added to each: p(a) = 4/8, p(b) = 2/8, p(c) = 1/8
    found = unigram_entropy([[0, 0], [0, 1]], [[1, 0, 0, 2], [2, 1]], vocab_size=4)
    # asked (without the first of each block): a, a, c, b
    assert found == pytest.approx((2 * math.log(2) + math.log(8) + math.log(4)) / 4)


def test_a_uniform_training_set_gives_the_logarithm_of_the_vocabulary():
    assert unigram_entropy([[0, 1, 2, 3]], [[0, 1, 2, 3]], vocab_size=4) == pytest.approx(math.log(4))
