"""The engine pads prompts on the left, training pads on the right: both must see a token at the same position."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from align.trainers.ppo.forward import reply_logprobs
from align.trainers.ppo.types import TokenBatch
from tests.align.trainers import ppo_case

ROLLOUT = {"temperature": 0.7, "top_p": 0.8, "max_completion_length": 7, "batch_size": 64}


def absolute_positions():
    """GPT-2 adds a learnt vector for each position, so a shifted one shows; Qwen2's positions are relative."""
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=259, initializer_range=0.3, eos_token_id=258, bos_token_id=None, **shape, **drops)
    return GPT2LMHeadModel(config).double().eval()


@pytest.mark.parametrize("make", [lambda: ppo_case.exact(ppo_case.policy()), absolute_positions], ids=["qwen2", "gpt2"])
def test_sampled_log_probabilities_are_those_of_the_training_forward(tmp_path, make):
    model = make()
    trainer = ppo_case.trainer(tmp_path, policy_model=model, rollout=ROLLOUT)
    samples = trainer.collect(ppo_case.prompts(6))
    assert len({len(ids) for ids in samples.prompt_ids}) > 2
    found = torch.tensor([logp for row in samples.engine_logps for logp in row], dtype=torch.float64)
    assert (found - trained(model, samples.prompt_ids, samples.reply_ids)).abs().max() < 2e-6
    width = max(map(len, samples.prompt_ids))  # a model that takes the padding for tokens says something else
    padded = [(7,) * (width - len(ids)) + ids for ids in samples.prompt_ids]
    assert (found - trained(model, padded, samples.reply_ids)).abs().max() > 1e-2


def trained(model, prompt_ids, reply_ids):
    """Log-probability of all reply tokens by the training forward, padded on the right."""
    tokens = TokenBatch.from_ids(prompt_ids, reply_ids, pad_id=7)
    with torch.no_grad():
        return reply_logprobs(model, tokens, ROLLOUT["temperature"])[tokens.mask_NS]
