"""vLLM's distribution at other temperatures than 1, long runs beyond the cache, adapters: engines of their own."""

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from align.models.adapters import save_pretrained
from align.models.load import load_causal_lm
from align.recipe.model_section import ModelSection
from rollouts.errors import RolloutError
from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from rollouts.vllm.engine import VLLMEngine
from rollouts.vllm.requests import request_params, sampling_requests
from rollouts.weights import adapter_tensors, checkpoint_tensors
from tests.rollouts.vllm.models import VOCABULARY, build, logits_after, random_prompts, settings, weights

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.slow]
PROMPTS = random_prompts(6, seed=2)
LONG = list(range(200))
GREEDY = SamplingParams(temperature=0, max_new_tokens=16)


@pytest.fixture(scope="module")
def model():
    return build("qwen2-untied")


@pytest.fixture(scope="module")
def engine(model):
    engine = VLLMEngine(model, settings(), temperature=0.7)
    engine.update_weights(weights(model), 1)
    yield engine
    engine.close()


def scheduler_of(engine):
    return engine._local._llm.llm_engine.engine_core.engine_core.scheduler


def distribution(logits, params, at):
    """(log-probabilities, those before truncation) over the vocabulary, float64, for one token of one reply."""
    scaled = logits / params.temperature
    full = torch.log_softmax(scaled, -1)
    if at < params.min_new_tokens:
        scaled = scaled.index_fill(0, torch.tensor(params.stop_token_ids), -math.inf)
    order = scaled.argsort(descending=True)
    allowed = order[: params.top_k or None]
    shares = torch.softmax(scaled[allowed], -1)
    kept = allowed[: int((shares.cumsum(-1) < params.top_p - 1e-9).sum()) + 1] if params.top_p < 1 else allowed
    drawn = torch.full_like(full, -math.inf)
    drawn[kept] = torch.log_softmax(scaled[kept], -1)
    return drawn, full


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_p": 0.9},
        {"top_k": 5},
        {"top_k": 8, "top_p": 0.9},
        {"min_new_tokens": 6, "stop_token_ids": tuple(range(0, VOCABULARY, 3))},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9},
    ],
)
def test_log_probabilities_are_those_of_the_draw(model, engine, changes):
    params = SamplingParams(**({"n": 4, "temperature": 0.7, "max_new_tokens": 12, "seed": 3} | changes))
    truncated = bool(changes.keys() & {"top_p", "top_k", "min_new_tokens"})
    for index, reply in enumerate(engine.generate(PROMPTS, params)):
        prompt = PROMPTS[index // 4]
        logits_TV = logits_after(model, [*prompt, *reply.token_ids], len(prompt))
        wanted = [distribution(logits, params, at) for at, logits in enumerate(logits_TV)]
        assert reply.logprobs == pytest.approx(
            [float(drawn[token]) for (drawn, _), token in zip(wanted, reply.token_ids, strict=True)], abs=1e-4
        )
        full = [float(full[token]) for (_, full), token in zip(wanted, reply.token_ids, strict=True)]
        assert reply.full_logprobs == (None if truncated else pytest.approx(full, abs=1e-4))


def test_scores_are_at_temperature_1_whatever_the_engines_kind(model, engine):
    wanted = torch.log_softmax(logits_after(model, LONG, 1), -1)[range(199), LONG[1:]]
    assert engine.token_logprobs([LONG])[0] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_first_tokens_are_drawn_from_the_distribution(model, engine):
    params = SamplingParams(n=4000, temperature=0.7, top_p=0.9, max_new_tokens=1, seed=1)
    drawn, _ = distribution(logits_after(model, [*LONG[:5], 0], 5)[0], params, 0)
    expected = 4000 * drawn.exp()
    counts = torch.zeros(VOCABULARY, dtype=torch.float64)
    for reply in engine.generate([LONG[:5]], params):
        counts[reply.token_ids[0]] += 1
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    statistic = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    freedom = int(often.sum()) - 1
    assert freedom >= 3 and statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_many_more_sequences_than_the_cache_holds_are_complete_and_right(model, engine):
    """The cache has room for few whole sequences, so vLLM starts more than it can finish and takes some back."""
    prompts = random_prompts(20, longest=200, seed=9)
    params = SamplingParams(n=2, temperature=0.7, max_new_tokens=80, seed=4)
    tight = VLLMEngine(model, settings(kv_cache_gib=0.0007), temperature=0.7)
    try:
        tight.update_weights(weights(model), 1)
        scheduler = scheduler_of(tight)
        taken_back, take_back = [], scheduler._preempt_request
        scheduler._preempt_request = lambda *given, **named: (taken_back.append(given), take_back(*given, **named))[1]
        wanted = engine.generate(prompts, params)
        got = tight.generate(prompts, params)
        assert len(taken_back) > 2
        assert [reply.token_ids for reply in got] == [reply.token_ids for reply in wanted]
        assert {len(reply.token_ids) for reply in got} == {80}
        for mine, other in zip(got, wanted, strict=True):
            assert mine.full_logprobs == pytest.approx(other.full_logprobs, abs=1e-4)
    finally:
        tight.close()


def test_replies_to_one_prompt_share_its_first_block(engine):
    scheduler, prefilled = scheduler_of(engine), []
    schedule = scheduler.schedule

    def counting(*given, **named):
        step = schedule(*given, **named)
        prefilled.append(step.total_num_scheduled_tokens)
        return step

    scheduler.schedule = counting
    engine.generate([LONG[::-1]], SamplingParams(n=4, temperature=0.7, max_new_tokens=3, seed=1))
    assert prefilled[0] == 200 + 3 * (200 - 128)


def test_settings_that_vllm_refuses_are_one_sentence_and_the_others_reach_it(model):
    with pytest.raises(RolloutError, match=r"vLLM could not start: .*recipe's keys are ppo.rollout.vllm.kv_cache_gib"):
        VLLMEngine(model, settings(kv_cache_gib=0.0001))
    with pytest.raises(RolloutError, match="max_model_len 600 is longer than the model's 512 positions"):
        VLLMEngine(model, settings(max_model_len=600))
    with pytest.raises(RolloutError, match="vllm_server"):
        VLLMEngine(model, settings(tensor_parallel=2))
    with pytest.raises(RolloutError, match="engine: hf"):
        VLLMEngine(model, settings(), return_support=True)
    odd = {"max_model_len": 512, "dtype": "bfloat16", "prefix_caching": False, "max_num_seqs": 3, "seed": 5}
    engine = VLLMEngine(model, settings(**odd))  # after all that one still starts
    try:
        engine.update_weights(weights(model), 1)
        config = engine._local._llm.llm_engine.vllm_config
        assert config.model_config.dtype == torch.bfloat16 and config.model_config.seed == 5
        assert not config.cache_config.enable_prefix_caching and config.scheduler_config.max_num_seqs == 3
        rounded = build("qwen2-untied", dtype=torch.bfloat16).float()
        wanted = torch.log_softmax(logits_after(rounded, LONG, 1), -1)[range(199), LONG[1:]]
        apart = (torch.tensor(engine.token_logprobs([LONG])[0], dtype=torch.float64) - wanted).abs()
        assert 1e-4 < apart.mean() < 0.1
        assert len(engine.generate(PROMPTS, SamplingParams(n=2, max_new_tokens=5))) == 12
        assert len(engine.generate([[1] * 496], GREEDY)[0].token_ids) == 16
    finally:
        engine.close()


def adapted(seed):
    """A PEFT model around the one base, its adapter random and not zero."""
    base = build("qwen2-tied")
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def adapting():
    """An engine that takes adapters by themselves, with their base's weights."""
    policy = adapted(1)
    engine = VLLMEngine(policy, settings(), takes_adapters=True)
    with pytest.raises(RolloutError, match="no weights yet"):
        engine.update_adapter(*adapter_tensors(policy), 1)
    engine.update_weights(checkpoint_tensors(policy, merge=False), 0)
    yield engine
    engine.close()


def test_adapters_by_themselves_replace_one_another(adapting):
    first, second = adapted(1), adapted(2)
    plain = adapting.generate([LONG], GREEDY)[0].token_ids
    replies = []
    for version, policy in ((1, first), (2, second), (3, second), (4, first)):
        adapting.update_adapter(*adapter_tensors(policy), version)
        replies.append(adapting.generate([LONG, LONG, *PROMPTS], GREEDY))
        theirs = HFEngine(policy, 0).generate([LONG, LONG, *PROMPTS], GREEDY)
        assert [reply.token_ids for reply in replies[-1]] == [reply.token_ids for reply in theirs]
        assert {reply.weight_version for reply in replies[-1]} == {version}
    assert replies[0][0].token_ids != replies[1][0].token_ids != plain
    adapting.update_weights(checkpoint_tensors(first, merge=False), 5)
    assert adapting.generate([LONG], GREEDY)[0].token_ids == plain
    with pytest.raises(RolloutError, match="vLLM refused the adapter"):
        adapting.update_adapter(adapter_tensors(first)[0] | {"r": 600}, adapter_tensors(first)[1], 6)
    with pytest.raises(RolloutError, match="lost its adapter"):
        adapting.generate([LONG], GREEDY)
    adapting.update_adapter(*adapter_tensors(second), 7)
    assert adapting.generate([LONG], GREEDY)[0].token_ids == replies[1][0].token_ids


def test_a_folder_that_a_stage_leaves_is_an_adapter_that_vllm_reads(adapting, tmp_path):
    import vllm
    from vllm.lora.request import LoRARequest

    build("qwen2-tied").save_pretrained(tmp_path / "base")
    path = str(tmp_path / "base")
    lora = {"rank": 4, "targets": ["q_proj", "up_proj"]}
    policy = load_causal_lm(path, ModelSection(path=path, adapter="lora", lora=lora))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    save_pretrained(policy, tmp_path / "model")
    prompts = [LONG, *PROMPTS]
    expected = [reply.token_ids for reply in HFEngine(policy, 0).generate(prompts, GREEDY)]
    adapting.update_weights(checkpoint_tensors(policy, merge=False), 10)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    greedy = vllm.SamplingParams(temperature=0, max_tokens=GREEDY.max_new_tokens, ignore_eos=True)
    found = []
    for adapter in (None, LoRARequest("saved", 77, str(tmp_path / "model"))):
        outputs = adapting._local._llm.generate(asked, greedy, use_tqdm=False, lora_request=adapter)
        found.append([tuple(output.outputs[0].token_ids) for output in outputs])
    assert found[1] == [tuple(ids) for ids in expected] and found[0] != found[1]


def test_an_engine_of_whole_weights_takes_no_adapter(engine):
    with pytest.raises(RolloutError, match="whole weights only"):
        engine.update_adapter(*adapter_tensors(adapted(3)), 2)


def test_requests_say_what_the_engine_in_this_process_says():
    """Both ways to vLLM ask for the same: every field of the JSON is one of vLLM's parameters with the same value."""
    for changes in ({}, {"temperature": 0.0, "top_p": 0.5}, {"top_k": 7, "temperature": 0.7}, {"top_k": 10**6}):
        n = 1 if changes.get("temperature") == 0 else 2  # vLLM's own limit
        params = SamplingParams(n=n, seed=4, stop_token_ids=(3,), min_new_tokens=1, **changes)
        requests = sampling_requests([[1], [2]], params, VOCABULARY)
        for row, known in enumerate(request_params(params, 2, VOCABULARY, mask=False)):
            for number in range(n):
                asked = json.loads(json.dumps(requests[n * row + number]["sampling_params"]))
                assert asked.pop("seed") == known.seed + number and asked.pop("n") == 1
                assert {name: getattr(known, name) for name in asked} == asked
