"""The HF engine against the model itself and an independent float64 softmax."""

import math
import random

import pytest
import torch
from transformers import GenerationConfig

from rollouts.errors import RolloutError
from rollouts.hf import HFEngine
from rollouts.protocol import Engine, SamplingParams, Scoring, Streaming

PROMPTS = [[5, 6, 7, 8, 9], [3], [11, 12, 13], [20, 21, 22, 23, 24, 25, 26, 27], [2, 4]]


def probabilities(model, ids, temperature=1.0, top_p=1.0):
    """The next token's distribution in float64 Python, from the model's raw logits."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].tolist()
    weights = [math.exp((value - max(logits)) / temperature) for value in logits]
    shares = [weight / math.fsum(weights) for weight in weights]
    kept, mass = {}, 0.0
    for token in sorted(range(len(shares)), key=lambda token: -shares[token]):
        if mass >= top_p:
            break
        kept[token] = shares[token]
        mass += shares[token]
    return [kept.get(token, 0.0) / mass for token in range(len(shares))]


def chi_square_limit(freedom, z=3.1):
    """Wilson-Hilferty: the value that a chi-square variable exceeds with probability 0.001."""
    return freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3


def assert_drawn_from(tokens, expected):
    """Pearson's test; tokens expected less than five times are taken together, impossible ones must not occur."""
    counts = [tokens.count(token) for token in range(len(expected))]
    assert all(not count for count, share in zip(counts, expected, strict=True) if share == 0.0)
    cells = [(count, share * len(tokens)) for count, share in zip(counts, expected, strict=True) if share]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5]
    if sum(wanted for _, wanted in rare) >= 1:
        cells.append((sum(count for count, _ in rare), sum(wanted for _, wanted in rare)))
    assert len(cells) >= 2
    assert sum((count - wanted) ** 2 / wanted for count, wanted in cells) < chi_square_limit(len(cells) - 1)


def greedy_loop(model, prompt, steps, stops=()):
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.8), (1.7, 0.9)])
def test_tokens_are_drawn_from_the_right_distribution(model, temperature, top_p):
    engine = HFEngine(model, pad_token_id=0, batch_size=2000)
    params = SamplingParams(n=4000, temperature=temperature, top_p=top_p, max_new_tokens=2, seed=1)
    completions = engine.generate([PROMPTS[0]], params)
    first = [completion.token_ids[0] for completion in completions]
    assert_drawn_from(first, probabilities(model, PROMPTS[0], temperature, top_p))
    likeliest = max(set(first), key=first.count)
    second = [completion.token_ids[1] for completion in completions if completion.token_ids[0] == likeliest]
    assert_drawn_from(second, probabilities(model, [*PROMPTS[0], likeliest], temperature, top_p))


def test_the_statistical_test_sees_a_wrong_temperature(model):
    params = SamplingParams(n=4000, temperature=0.9, max_new_tokens=1, seed=1)
    tokens = [completion.token_ids[0] for completion in HFEngine(model, 0, 4000).generate([PROMPTS[0]], params)]
    with pytest.raises(AssertionError):
        assert_drawn_from(tokens, probabilities(model, PROMPTS[0]))


def test_greedy_is_the_argmax_loop_whatever_the_padding(model):
    stop = greedy_loop(model, PROMPTS[3], 10)[4]
    params = SamplingParams(temperature=0, max_new_tokens=10, stop_token_ids=(stop,))
    expected = [greedy_loop(model, prompt, 10, (stop,)) for prompt in PROMPTS]
    for batch_size in (1, 2, 64):
        completions = HFEngine(model, pad_token_id=0, batch_size=batch_size).generate(PROMPTS, params)
        assert [completion.token_ids for completion in completions] == expected
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == stop)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_logprobs_are_those_of_the_sampling_distribution(model, top_p):
    engine = HFEngine(model, pad_token_id=0)
    params = SamplingParams(n=2, temperature=0.7, top_p=top_p, max_new_tokens=6, stop_token_ids=(7,), seed=3)
    for index, completion in enumerate(engine.generate(PROMPTS, params)):
        assert len(completion.logprobs) == len(completion.token_ids)
        for at, (token, logprob) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
            context = PROMPTS[index // 2] + list(completion.token_ids[:at])
            assert logprob == pytest.approx(math.log(probabilities(model, context, 0.7, top_p)[token]), abs=1e-4)


def test_greedy_logprobs_are_zero_and_there_is_no_mass_to_keep(model):
    params = SamplingParams(temperature=0, max_new_tokens=3, return_support=True)
    completion = HFEngine(model, 0).generate([[1, 2]], params)[0]
    assert (completion.logprobs, completion.kept_mass, completion.support) == ((0.0, 0.0, 0.0), None, None)


def test_seed_fixes_the_replies_whatever_the_batch_size(model):
    params = SamplingParams(n=3, top_p=0.9, max_new_tokens=8, stop_token_ids=(7, 8), seed=5)
    replies = [
        [completion.token_ids for completion in HFEngine(model, 0, batch_size=size).generate(PROMPTS, params)]
        for size in (1, 4, 64, 64)
    ]
    assert replies[0] == replies[1] == replies[2] == replies[3]
    assert len(set(replies[0])) > 10  # neither samples of one prompt nor prompts repeat one another
    other = SamplingParams(n=3, top_p=0.9, max_new_tokens=8, stop_token_ids=(7, 8), seed=6)
    assert [completion.token_ids for completion in HFEngine(model, 0).generate(PROMPTS, other)] != replies[0]


def test_without_a_seed_every_call_differs(model):
    params = SamplingParams(max_new_tokens=12)
    engine = HFEngine(model, 0)
    assert engine.generate(PROMPTS, params) != engine.generate(PROMPTS, params)


def test_prompt_major_order(model):
    params = SamplingParams(n=2, temperature=0, max_new_tokens=3)
    completions = HFEngine(model, 0, batch_size=3).generate(PROMPTS, params)
    expected = [greedy_loop(model, prompt, 3) for prompt in PROMPTS for _ in range(2)]
    assert [completion.token_ids for completion in completions] == expected
    assert HFEngine(model, 0).generate([], params) == []


def test_min_new_tokens_holds_the_stop_tokens_back(model):
    stops = tuple(range(20))
    params = SamplingParams(n=20, max_new_tokens=6, min_new_tokens=4, stop_token_ids=stops, seed=0)
    completions = HFEngine(model, 0).generate(PROMPTS, params)
    assert min(len(completion.token_ids) for completion in completions) >= 4
    assert any(len(completion.token_ids) == 5 for completion in completions)
    assert not any(token in stops for completion in completions for token in completion.token_ids[:3])


def test_a_pad_id_that_the_model_draws_or_that_is_the_stop_token_does_no_harm(model):
    drawn = greedy_loop(model, PROMPTS[0], 6)
    params = SamplingParams(temperature=0, max_new_tokens=6)
    assert HFEngine(model, drawn[2]).generate(PROMPTS, params)[0].token_ids == drawn
    params = SamplingParams(temperature=0, max_new_tokens=6, stop_token_ids=(drawn[-1],))
    completion = HFEngine(model, drawn[-1]).generate(PROMPTS, params)[0]
    assert completion.token_ids == drawn[: drawn.index(drawn[-1]) + 1] and completion.finish_reason == "stop"


QWEN = {"do_sample": True, "top_k": 2, "top_p": 0.3, "temperature": 0.2, "repetition_penalty": 3.0}


@pytest.mark.parametrize(
    "shipped",
    [
        QWEN,  # the keys that Qwen2.5-Instruct ships, with stronger values
        {"suppress_tokens": list(range(30))},
        {"no_repeat_ngram_size": 1, "eos_token_id": 5, "max_time": 1e-9, "min_p": 0.5, "forced_eos_token_id": 1},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_models_own_generation_config_does_not_leak(model, shipped, temperature):
    params = SamplingParams(n=4, temperature=temperature, max_new_tokens=8, seed=2)
    clean = HFEngine(model, 0).generate(PROMPTS, params)
    model.generation_config = own = GenerationConfig(**shipped)
    assert HFEngine(model, 0).generate(PROMPTS, params) == clean
    assert model.generation_config is own and own.to_diff_dict().items() >= shipped.items()


def test_nothing_is_disturbed(model):
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    shipped, state, python = model.generation_config, torch.get_rng_state(), random.getstate()
    HFEngine(model, 0).generate(PROMPTS, SamplingParams(max_new_tokens=4, seed=0))
    HFEngine(model, 0).generate(PROMPTS, SamplingParams(max_new_tokens=4))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert model.generation_config is shipped
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert torch.is_grad_enabled()


def test_dropout_and_gradient_checkpointing_of_training_do_not_reach_sampling(build_model):
    model = build_model(attention_dropout=0.5)
    params = SamplingParams(temperature=0, max_new_tokens=6)
    expected = HFEngine(model, 0).generate(PROMPTS, params)
    model.gradient_checkpointing_enable()
    model.train()
    assert HFEngine(model, 0).generate(PROMPTS, params) == expected
    assert model.training


def test_broken_weights_are_an_error_and_everything_is_put_back(model):
    model.train()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(RolloutError, match="not finite"):
        HFEngine(model, 0).generate(PROMPTS, SamplingParams(max_new_tokens=2, seed=0))
    assert model.training


def test_empty_prompt_and_closed_engine_are_errors(model):
    engine = HFEngine(model, 0)
    with pytest.raises(RolloutError, match="prompt 1 is empty"):
        engine.generate([[1], []], SamplingParams())
    engine.close()
    with pytest.raises(RolloutError, match="closed"):
        engine.generate([[1]], SamplingParams())
    with pytest.raises(RolloutError, match="batch_size"):
        HFEngine(model, 0, batch_size=0)
    with pytest.raises(RolloutError, match="unwrap"):
        HFEngine(torch.nn.DataParallel(model), 0)


def test_versions_and_weights(build_model):
    policy, copy = build_model(seed=1), build_model(seed=2)
    params = SamplingParams(temperature=0, max_new_tokens=5)
    shared, separate = HFEngine(policy, 0), HFEngine(copy, 0, shares_module=False)
    assert isinstance(shared, Engine)
    expected = [completion.token_ids for completion in shared.generate(PROMPTS, params)]
    assert [completion.token_ids for completion in separate.generate(PROMPTS, params)] != expected
    separate.update_weights(policy.named_parameters(), version=4)
    completions = separate.generate(PROMPTS, params)
    assert [completion.token_ids for completion in completions] == expected
    assert {completion.weight_version for completion in completions} == {4}
    shared.update_weights(iter(()), version=9)
    assert shared.generate([[1]], params)[0].weight_version == 9
    with pytest.raises(RolloutError, match=r"'model\.embed_tokens\.weight' is missing"):
        separate.update_weights([("lm_head.weight", policy.lm_head.weight)], version=5)
    with pytest.raises(RolloutError, match="only a part"):
        separate.generate([[1]], params)
    with pytest.raises(RolloutError, match="it lacks 'other', or got it twice"):
        separate.update_weights([("other", policy.lm_head.weight)], version=5)
    with pytest.raises(RolloutError, match=r"model\.norm\.weight.*\(3,\)"):
        wrong = dict(policy.named_parameters()) | {"model.norm.weight": torch.zeros(3)}
        separate.update_weights(wrong.items(), version=5)
    assert separate.weight_version == 4
    separate.update_weights(policy.named_parameters(), version=6)
    assert [completion.token_ids for completion in separate.generate(PROMPTS, params)] == expected


def test_scores_are_the_plain_log_probabilities(build_model):
    model = build_model(seed=1)
    engine = HFEngine(model, 0, batch_size=2)
    assert isinstance(engine, Scoring) and engine.dtype == torch.float32
    sequences = [[5, 9, 2, 7], [3, 4], [8], [1, 2, 3, 4, 5, 6]]
    scores = engine.token_logprobs(sequences)
    assert [len(row) for row in scores] == [3, 1, 0, 5]
    for sequence, row in zip(sequences, scores, strict=True):
        with torch.no_grad():
            logps = model(torch.tensor([sequence])).logits[0].double().log_softmax(-1)
        expected = [float(logps[at, token]) for at, token in enumerate(sequence[1:])]
        assert row == pytest.approx(expected, abs=1e-5)


def test_adapters_sample_with_their_weights_and_leave_the_base_as_it_was(build_model):
    from peft import LoraConfig, get_peft_model

    base = build_model()
    params = SamplingParams(temperature=0, max_new_tokens=8)
    plain = HFEngine(base, 0).generate(PROMPTS, params)
    shipped = base.generation_config
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    assert HFEngine(adapted, 0).generate(PROMPTS, params) == plain  # LoRA begins as the identity
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=2.0)
    assert HFEngine(adapted, 0).generate(PROMPTS, params) != plain
    assert base.generation_config is shipped


def test_autocast_dtype_is_used_and_ends_with_the_call(model):
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    engine = HFEngine(model, 0, autocast_dtype=torch.bfloat16)
    engine.generate(PROMPTS, SamplingParams(max_new_tokens=2, seed=0))
    seen.clear()  # the first call asks whether the decode loop computes what `generate` does, in the model's own dtype
    engine.generate(PROMPTS, SamplingParams(max_new_tokens=2, seed=0))
    assert set(seen) == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.gpu
def test_on_cuda_as_on_the_cpu_and_its_generator_is_not_touched(model):
    params = SamplingParams(n=4, top_p=0.9, max_new_tokens=8, stop_token_ids=(7,), seed=5)
    expected = HFEngine(model, 0).generate(PROMPTS, params)
    model.cuda()
    state = torch.cuda.get_rng_state()
    replies = HFEngine(model, 0).generate(PROMPTS, params)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    same = sum(ours.token_ids == theirs.token_ids for ours, theirs in zip(replies, expected, strict=True))
    assert same >= len(expected) - 1  # one uniform number may fall on the other side of a rounding error


def test_a_reply_that_is_heard_is_the_one_that_is_generated(model, monkeypatch):
    for way in (None, "no loop for it"):  # the decode loop, and transformers' generate
        monkeypatch.setattr("rollouts.hf.why_not", lambda model, way=way: way)
        engine = HFEngine(model, 0)
        assert isinstance(engine, Streaming)
        for seed in range(6):
            params = SamplingParams(max_new_tokens=12, seed=seed, stop_token_ids=(7, 9, 11))
            heard: list[int] = []
            (said,) = engine.generate([PROMPTS[0]], params)
            assert engine.stream(PROMPTS[0], params, heard.append) == said
            assert tuple(heard) == said.token_ids
    with pytest.raises(RolloutError, match="one reply can be heard at a time"):
        engine.stream(PROMPTS[0], SamplingParams(n=2), print)
    with pytest.raises(RolloutError, match="is empty"):
        engine.stream([], SamplingParams(), print)
