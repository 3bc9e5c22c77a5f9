"""What vLLM does on a GPU alone: sleeping, and the record of what could be drawn."""

import pytest
import torch

from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from rollouts.vllm.engine import VLLMEngine
from tests.rollouts.vllm.models import build, random_prompts, settings, weights

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.gpu]
PROMPTS = random_prompts(8, seed=2)
GREEDY = SamplingParams(temperature=0, max_new_tokens=16)


@pytest.fixture(scope="module")
def model():
    return build("qwen2-tied").to("cuda")


def test_an_engine_sleeps_takes_weights_asleep_and_wakes(model):
    engine = VLLMEngine(model, settings(kv_cache_gib=1, eager=True))
    try:
        engine.update_weights(weights(model), 1)
        wanted = [reply.token_ids for reply in HFEngine(model, 0).generate(PROMPTS, GREEDY)]
        assert [reply.token_ids for reply in engine.generate(PROMPTS, GREEDY)] == wanted
        free = torch.cuda.mem_get_info()[0]
        engine.sleep()
        assert torch.cuda.mem_get_info()[0] - free > 0.9 * 2**30
        engine.wake()  # without a push the weights are those of before
        assert [reply.token_ids for reply in engine.generate(PROMPTS, GREEDY)] == wanted
        engine.sleep()
        other = build("qwen2-tied", seed=1).to("cuda")
        engine.update_weights(weights(other), 2)
        assert torch.cuda.mem_get_info()[0] - free > 0.8 * 2**30  # the cache sleeps on
        wanted = [reply.token_ids for reply in HFEngine(other, 0).generate(PROMPTS, GREEDY)]
        assert [reply.token_ids for reply in engine.generate(PROMPTS, GREEDY)] == wanted
    finally:
        engine.close()


def test_the_support_is_what_top_k_and_top_p_leave(model):
    engine = VLLMEngine(model, settings(eager=True), return_support=True)
    params = SamplingParams(n=2, top_k=8, top_p=0.9, max_new_tokens=6, seed=1, return_support=True)
    try:
        engine.update_weights(weights(model), 1)
        for index, reply in enumerate(engine.generate(PROMPTS, params)):
            prompt = PROMPTS[index // 2]
            ids = torch.tensor([[*prompt, *reply.token_ids]], device="cuda")
            with torch.no_grad():
                logits_TV = model(ids).logits[0, len(prompt) - 1 : -1].double()
            for at, support in enumerate(reply.support):
                best = logits_TV[at].topk(8)
                before = best.values.softmax(-1).cumsum(-1) - best.values.softmax(-1)
                assert set(support) == set(best.indices[before < 0.9].tolist())
                assert reply.token_ids[at] in support
        greedy = engine.generate(PROMPTS, GREEDY)
        assert [r.token_ids for r in greedy] == [r.token_ids for r in HFEngine(model, 0).generate(PROMPTS, GREEDY)]
    finally:
        engine.close()
