"""The average of a policy behind an adapter: the adapter's weights move, the base is one and stays as it is."""

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model

from align.trainers.ppo.learner import WeightAverage
from tests.align.models import roles_case


@pytest.mark.parametrize("bits", [32, pytest.param(4, marks=pytest.mark.needs("bitsandbytes"))])
def test_the_base_of_an_adapter_is_shared_and_the_rest_averaged_by_hand(tmp_path, bits):
    if bits == 4:
        roles_case.base().save_pretrained(tmp_path)
    policy = get_peft_model(roles_case.base(four_bit=tmp_path if bits == 4 else None), roles_case.config())
    start = {name: weights.detach().clone() for name, weights in policy.named_parameters()}
    average = WeightAverage(policy, 0.75, Accelerator(cpu=True))
    for seed in (1, 2):
        roles_case.moved(policy, seed)
        average.update(policy)
    now, mine = dict(policy.named_parameters()), dict(average.module.named_parameters())
    first = dict(roles_case.moved(policy, 1).named_parameters())
    first = {name: weights.detach().clone() for name, weights in first.items()}
    second = dict(roles_case.moved(policy, 2).named_parameters())
    assert mine.keys() == start.keys()
    for name, weights in mine.items():
        assert not weights.requires_grad
        if "lora" in name:
            expected = 0.75 * (0.75 * start[name] + 0.25 * first[name]) + 0.25 * second[name]
            torch.testing.assert_close(weights, expected.detach(), rtol=1e-6, atol=1e-7)
        else:
            assert weights is now[name] and torch.equal(weights, start[name])
    ids = torch.arange(1, 11)[None]
    for name, weights in mine.items():
        if "lora" in name:
            now[name].data.copy_(weights)
    with torch.no_grad():
        torch.testing.assert_close(average.module(input_ids=ids).logits, policy(input_ids=ids).logits)
