"""Every model family, whole: greedy replies of vLLM and of transformers are the same, token for token, in float32."""

import pytest
import torch

from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from rollouts.vllm.engine import VLLMEngine
from rollouts.weights import checkpoint_tensors
from tests.rollouts.vllm.models import FAMILIES, build, logits_after, random_prompts, settings

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.slow]
PROMPTS = random_prompts(24, longest=150, seed=8)
GREEDY = SamplingParams(temperature=0, max_new_tokens=32)


def assert_same_replies(model, ours, theirs):
    """Equal, or first differing where the two best logits are within 1e-4; few may differ at all."""
    differing = 0
    for prompt, mine, other in zip(PROMPTS, ours, theirs, strict=True):
        if mine == other:
            continue
        differing += 1
        at = next(at for at, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
        best = logits_after(model, [*prompt, *other[: at + 1]], len(prompt))[at].topk(2).values
        assert best[0] - best[1] < 1e-4, (prompt, at, mine[at], other[at])
    assert differing <= 1


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen2-untied"])  # that one: test_sampling.py
def test_greedy_replies_are_those_of_transformers(family):
    model, stale = build(family), build(family, seed=1)
    engine = VLLMEngine(model, settings())
    try:
        engine.update_weights(checkpoint_tensors(stale), 1)  # the second push must undo all of the first
        before = [reply.token_ids for reply in engine.generate(PROMPTS, GREEDY)]
        assert_same_replies(stale, before, [r.token_ids for r in HFEngine(stale, 0).generate(PROMPTS, GREEDY)])
        engine.update_weights(checkpoint_tensors(model), 2)
        ours = [reply.token_ids for reply in engine.generate(PROMPTS, GREEDY)]
        theirs = [reply.token_ids for reply in HFEngine(model, 0).generate(PROMPTS, GREEDY)]
        assert_same_replies(model, ours, theirs)
        assert sum(mine != old for mine, old in zip(ours, before, strict=True)) > 18
        for ids, scores in zip(PROMPTS[:9], engine.token_logprobs(PROMPTS[:9]), strict=True):
            wanted = torch.log_softmax(logits_after(model, ids, 1), -1)[range(len(ids) - 1), ids[1:]]
            assert scores == pytest.approx(wanted.tolist(), abs=1e-4)
    finally:
        engine.close()


def test_the_comparison_sees_a_wrong_bias():
    model = build("qwen2-untied")
    theirs = [reply.token_ids for reply in HFEngine(model, 0).generate(PROMPTS, GREEDY)]
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.bias[0] += 0.5
    wrong = [reply.token_ids for reply in HFEngine(model, 0).generate(PROMPTS, GREEDY)]
    with pytest.raises(AssertionError):
        assert_same_replies(model, wrong, theirs)
