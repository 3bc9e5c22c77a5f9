import math

import pytest

from align.trainers.ppo.controllers import KLController, PtxController


def test_a_fixed_coefficient_stays():
    kl = KLController(0.04)
    kl.update(100.0, 512)
    kl.load_state_dict({"coef": 3.0})
    assert kl.coef == 0.04
    ptx = PtxController(0.3, 0.5)
    ptx.update(9.0)
    ptx.load_state_dict({"coef": 3.0})
    assert ptx.coef == 0.3


def test_the_kl_is_led_to_its_target_by_hand():
    kl = KLController(0.1, target=6.0, horizon=1000)
    kl.update(6.6, 100)  # an error of a tenth
    assert kl.coef == pytest.approx(0.1 * (1 + 0.1 * 100 / 1000))
    kl.update(60.0, 100)  # at most a fifth
    assert kl.coef == pytest.approx(0.101 * 1.02)
    kl.update(0.0, 100)
    assert kl.coef == pytest.approx(0.101 * 1.02 * 0.98)
    before = kl.coef
    kl.update(math.nan, 100)
    assert kl.coef == before
    again = KLController(0.1, target=6.0)
    again.load_state_dict(kl.state_dict())
    assert again.coef == before


def test_the_ptx_coefficient_is_led_to_a_ratio_of_norms():
    ptx = PtxController("auto", 0.5)
    assert ptx.coef == 0.1
    ptx.update(0.4)
    assert ptx.coef == pytest.approx(0.125)
    ptx.update(100.0)
    assert ptx.coef == pytest.approx(0.0625)  # at most halved
    ptx.update(0.001)
    ptx.update(math.inf)
    ptx.update(0.0)
    assert ptx.coef == pytest.approx(0.125)  # at most doubled; what says nothing changes nothing
    again = PtxController("auto", 0.5)
    again.load_state_dict(ptx.state_dict())
    assert again.coef == ptx.coef
