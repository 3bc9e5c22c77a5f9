"""Recorded supports in the layout of the update, and the engine's numbers against the training forward's."""

import math

import pytest
import torch

from align.functional import support_logprobs
from align.trainers.ppo.forward import reply_logprobs
from align.trainers.ppo.types import Samples, SupportTensor, TokenBatch, full_logprobs
from rollouts.hf import HFEngine
from rollouts.protocol import Completion, SamplingParams
from rollouts.scripted import ScriptedEngine
from tests.align.trainers import ppo_case

PROMPTS = [[1, 2, 3], [4]]
REPLIES = [[5, 6], [7, 8, 9]]
SUPPORTS = [[[5, 10, 11], [6]], [[7, 12], [8], [13, 9, 14, 15]]]


def test_supports_stand_at_the_state_before_their_token():
    tokens = TokenBatch.from_ids(PROMPTS, REPLIES)
    ids, mask = SupportTensor.from_supports(SUPPORTS, tokens).padded()
    assert ids.shape == mask.shape == (2, 4, 4) and ids.dtype == torch.int64
    found = [
        [row_ids[row_mask].tolist() for row_ids, row_mask in zip(*pair, strict=True)]
        for pair in zip(ids, mask, strict=True)
    ]
    assert found == [[[], [], [5, 10, 11], [6]], [[7, 12], [8], [13, 9, 14, 15], []]]
    assert torch.equal(mask.any(-1), tokens.mask_NS)
    assert torch.all(ids[~mask] == 0)


def test_rows_are_cut_like_those_of_the_tokens():
    tokens = TokenBatch.from_ids(PROMPTS, REPLIES)
    supports = SupportTensor.from_supports(SUPPORTS, tokens)
    rows = torch.tensor([1])
    cut = tokens.rows(rows)
    ids, mask = supports.rows(rows, cut.mask_NS.shape[1]).padded()
    alone = SupportTensor.from_supports(SUPPORTS[1:], cut).padded()
    assert torch.equal(ids, alone[0]) and torch.equal(mask, alone[1])
    whole = supports.rows(torch.tensor([1, 0])).padded()
    assert torch.equal(whole[0], supports.padded()[0].flip(0))


@pytest.mark.parametrize(("broken", "what"), [(None, "2 tokens and none"), ([[5]], "2 tokens and 1 recorded")])
def test_replies_without_a_support_for_each_token_are_refused(broken, what):
    with pytest.raises(ValueError, match=f"reply 0 has {what}"):
        SupportTensor.from_supports([broken, SUPPORTS[1]], TokenBatch.from_ids(PROMPTS, REPLIES))


def test_full_logprobs_by_hand():
    completion = Completion((1, 2), (math.log(0.5), 0.0), "stop", 0, kept_mass=(0.8, 0.25))
    assert full_logprobs(completion) == pytest.approx([math.log(0.4), math.log(0.25)], rel=1e-14)
    assert full_logprobs(Completion((1,), (0.0,), "stop", 0)) is None
    assert full_logprobs(Completion((1,), None, "stop", 0, kept_mass=(1.0,))) is None
    assert full_logprobs(Completion((1,), None, "stop", 0, full_logprobs=(-0.5,))) == (-0.5,)


SETTINGS = [
    {"top_p": 0.9},
    {"top_k": 12, "temperature": 0.7},
    {"top_p": 0.8, "top_k": 30, "temperature": 1.3, "min_new_tokens": 4},
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_engine_and_the_training_forward_say_the_same(setting):
    model = ppo_case.policy()
    params = SamplingParams(
        n=4, max_new_tokens=9, stop_token_ids=(ppo_case.END, 256, 65), seed=1, return_support=True, **setting
    )
    prompts = [[10, 20, 30], [40], [50, 60, 70, 80, 90]]
    completions = HFEngine(model, 0, batch_size=5).generate(prompts, params)
    tokens = TokenBatch.from_ids(
        [prompt for prompt in prompts for _ in range(4)], [completion.token_ids for completion in completions]
    )
    mask_NS = tokens.mask_NS
    supports = SupportTensor.from_supports([completion.support for completion in completions], tokens)
    ids_NSK, inside_NSK = supports.padded()
    with torch.no_grad():
        full = reply_logprobs(model, tokens, params.temperature)[mask_NS]
        logits_NSV = model(input_ids=tokens.input_ids_NT, attention_mask=tokens.attention_mask_NT).logits[:, :-1]
        next_NS = tokens.input_ids_NT[:, 1:]
        drawn = support_logprobs(logits_NSV, next_NS, ids_NSK, inside_NSK, params.temperature)
        each = torch.stack(
            [support_logprobs(logits_NSV, ids, ids_NSK, inside_NSK, params.temperature) for ids in ids_NSK.unbind(-1)],
            dim=-1,
        )
    engine_full = torch.tensor([logp for completion in completions for logp in full_logprobs(completion)])
    engine_drawn = torch.tensor([logp for completion in completions for logp in completion.logprobs])
    torch.testing.assert_close(full, engine_full, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn[mask_NS], engine_drawn, rtol=0, atol=1e-5)
    assert float((full - engine_drawn).abs().max()) > 0.01  # the two distributions do differ here
    sums = (each.exp() * inside_NSK).sum(-1)[mask_NS]
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)
    assert torch.all(drawn[~mask_NS] == 0)


def test_collect_takes_what_the_engine_recorded(tmp_path):
    trainer = ppo_case.trainer(tmp_path, rollout={"top_p": 0.8})
    params = trainer.sampling_params()
    assert not params.return_support
    samples = trainer.collect(ppo_case.prompts(4), params)
    assert samples.supports == (None,) * 8
    tokens = TokenBatch.from_ids(samples.prompt_ids, samples.reply_ids)
    with torch.no_grad():
        expected = reply_logprobs(trainer.policy.raw, tokens, params.temperature)[tokens.mask_NS]
    logps = torch.tensor([logp for row in samples.engine_logps for logp in row])
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-5)
    assert [len(row) for row in samples.kept_mass] == [len(ids) for ids in samples.reply_ids]
    assert all(0.8 - 1e-6 <= mass < 1 for row in samples.kept_mass for mass in row)


def test_an_engine_that_records_nothing_will_do(tmp_path):
    engine = ScriptedEngine(lambda prompt, number: [65 + number, ppo_case.END], logprob=-0.5)
    samples = ppo_case.trainer(tmp_path, engine=engine).collect(ppo_case.prompts(2))
    assert samples.engine_logps == samples.kept_mass == samples.supports == (None,) * 4


def test_samples_with_and_without_records_are_put_together():
    plain = ppo_case.samples((1, 2))
    assert plain.engine_logps == plain.kept_mass == plain.supports == (None, None)
    fields = {name: getattr(plain, name) for name in ("prompts", "prompt_ids", "reply_ids", "replies", "finished")}
    logps, masses, supports = ((-1.0,), (-1.0, -2.0)), ((1.0,), (0.5, 1.0)), (((1,),), ((1, 2), (3,)))
    recorded = Samples(**fields, engine_logps=logps, kept_mass=masses, supports=supports)
    both = Samples.concatenate([plain, recorded])
    assert both.engine_logps == (None, None, *logps)
    assert (both.kept_mass, both.supports) == ((None, None, *masses), (None, None, *supports))
