import pytest
import torch

from align.trainers.ppo.forward import (
    reply_distribution,
    reply_logprobs,
    silence_dropout,
    state_values,
)
from align.trainers.ppo.types import TokenBatch
from tests.align.trainers import ppo_case

PROMPTS, REPLIES = [(1, 2, 3), (4, 5, 6, 7, 8), (9,)], [(10, 11, 258), (12,), (13, 14, 15, 16)]


def test_logprobs_and_entropy_are_those_of_each_row_alone():
    model = ppo_case.exact(ppo_case.policy())
    batch = TokenBatch.from_ids(PROMPTS, REPLIES, pad_id=77)
    with torch.no_grad():
        found = reply_distribution(model, batch, 0.5, entropy=True)
        logps, entropy = found.full, found.entropy
        assert found.ratio is logps and reply_distribution(model, batch, 0.5).entropy is None
        assert torch.equal(reply_logprobs(model, batch, 0.5), logps)
        for row, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
            logits = model(input_ids=torch.tensor([[*prompt, *reply]])).logits[0] / 0.5
            for t, token in enumerate(reply):
                state = len(prompt) + t - 1
                full = logits[state] - logits[state].logsumexp(0)
                assert float(logps[row, state]) == pytest.approx(float(full[token]), rel=1e-12)
                assert float(entropy[row, state]) == pytest.approx(float(-(full.exp() * full).sum()), rel=1e-12)
    assert logps.shape == batch.mask_NS.shape


def test_values_are_those_before_each_reply_token():
    critic = ppo_case.ExactCritic()
    batch = TokenBatch.from_ids(PROMPTS, REPLIES, pad_id=77)
    with torch.no_grad():
        values = state_values(critic, batch)
        for row, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
            ids = torch.tensor([[*prompt, *reply]])
            alone = critic(ids, torch.ones_like(ids))[0]
            for state in range(len(prompt) - 1, len(prompt) + len(reply) - 1):
                assert float(values[row, state]) == pytest.approx(float(alone[state]), rel=1e-12)


def test_silenced_models_say_the_same_in_both_modes():
    model = ppo_case.policy(attention_dropout=0.4)
    model.model.layers[0].mlp = torch.nn.Sequential(model.model.layers[0].mlp, torch.nn.Dropout(0.5))
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    assert not torch.equal(model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    silence_dropout(model)
    assert torch.equal(model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
