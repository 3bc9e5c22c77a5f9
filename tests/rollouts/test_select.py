"""Which engine a recipe's word gives."""

import logging

import pytest

from rollouts.errors import RolloutError
from rollouts.hf import HFEngine
from rollouts.select import make_engine


def test_auto_takes_hf_and_says_so(model, caplog):
    with caplog.at_level(logging.INFO):
        engine = make_engine("auto", model, pad_token_id=3, batch_size=7, shares_module=False)
    assert isinstance(engine, HFEngine)
    assert (engine.pad_token_id, engine.batch_size, engine.shares_module) == (3, 7, False)
    assert "HF generate" in caplog.text
    caplog.clear()
    assert isinstance(make_engine("hf", model, pad_token_id=0), HFEngine)
    assert caplog.text == ""


def test_an_unknown_engine_is_refused(model):
    with pytest.raises(RolloutError, match="'sglang'"):
        make_engine("sglang", model, pad_token_id=0)
