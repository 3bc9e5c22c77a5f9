"""Which engine a recipe's word gives."""

import logging

import pytest
import torch
from torch import nn

from align.runtime import packages
from align.runtime.errors import MissingPackageError
from rollouts.errors import RolloutError
from rollouts.hf import HFEngine
from rollouts.select import make_engine, why_not_vllm
from rollouts.settings import VLLMSettings
from rollouts.vllm import local

SETTINGS = VLLMSettings(max_model_len=64)


def test_auto_takes_hf_on_a_cpu_and_says_why(model, caplog):
    with caplog.at_level(logging.INFO):
        engine = make_engine("auto", model, pad_token_id=3, batch_size=7, vllm=SETTINGS, shares_module=False)
    assert isinstance(engine, HFEngine)
    assert (engine.pad_token_id, engine.batch_size, engine.shares_module) == (3, 7, False)
    assert "auto takes HF generate, because the policy is not on a GPU" in caplog.text
    caplog.clear()
    assert isinstance(make_engine("hf", model, pad_token_id=0), HFEngine)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("device", "installed", "settings", "reason"),
    [
        ("cpu", True, SETTINGS, "the policy is not on a GPU"),
        ("cuda", True, SETTINGS, None),
        ("cuda", True, None, "no settings of vLLM are given"),
        ("cuda", False, SETTINGS, "vLLM is not installed"),
        ("cuda", True, SETTINGS, "vLLM has no class of its own for it"),
    ],
)
def test_auto_takes_vllm_where_it_is_usable(monkeypatch, device, installed, settings, reason):
    class Placed(nn.Module):
        """A module on a device that this machine need not have."""

        def parameters(self, recurse=True):
            yield type("Weight", (), {"device": torch.device(device)})()

    monkeypatch.setattr(packages, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(local, "why_not_beside", lambda model: reason)  # asks vLLM: tests/rollouts/vllm/test_engine.py
    assert why_not_vllm(Placed(), settings) == reason


def test_an_unknown_engine_is_refused(model):
    with pytest.raises(RolloutError, match="'sglang': choose one of auto, hf, vllm, vllm_server"):
        make_engine("sglang", model, pad_token_id=0)


@pytest.mark.parametrize("kind", ["vllm", "vllm_server"])
def test_vllm_that_is_not_there_is_named_with_the_way_to_get_it(model, monkeypatch, kind):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(
        MissingPackageError, match=rf"'{kind}' needs vLLM, which is not installed: pip install 'align-rlhf\[vllm\]'"
    ):
        make_engine(kind, model, pad_token_id=0, vllm=SETTINGS)
    with pytest.raises(RolloutError, match="needs settings"):
        make_engine(kind, model, pad_token_id=0)


def test_servers_named_by_url_need_no_vllm_here(model, monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    monkeypatch.setenv("SOME_KEY", "k" * 16)
    settings = VLLMSettings(max_model_len=16, urls=(f"unix://{tmp_path}/socket",), api_key_env="SOME_KEY")
    with pytest.raises(RolloutError, match=r"is `python -m rollouts.vllm.serve` running there"):
        make_engine("vllm_server", model, pad_token_id=0, vllm=settings)
