"""The attention of flat rows in the three ways in which it is computed, and the models that take none."""

import copy
import logging
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import varlen
from transformers import AttentionInterface, GPT2Config, GPT2Model, MambaConfig, MambaModel, Qwen2Model
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from reward import flat
from reward.flat import Parts, by_padding, by_part, by_varlen, flat_problem
from reward.model import RewardModel
from reward.shared import takes_flat
from tests.tiny_models import qwen2_config

GROUPS = [(4, [3, 1, 6]), (1, [2]), (7, [5, 5])]


def every_part_alone(query, key, value, parts):
    """Each part's queries against its prompt's keys and its own, by the formula."""
    found = []
    for prompt, at, length in zip(parts.prompts, parts.starts, parts.lengths, strict=True):
        before = [] if prompt is None else range(parts.starts[prompt], parts.starts[prompt] + parts.lengths[prompt])
        for place in range(at, at + length):
            seen = [*before, *range(at, place + 1)]
            heads = query.shape[1] // key.shape[1]
            keys, values = (states[0, :, seen].repeat_interleave(heads, dim=0) for states in (key, value))
            weights = (keys @ query[0, :, place, :, None] / query.shape[-1] ** 0.5).softmax(dim=1)
            found.append((weights * values).sum(1))
    return torch.stack(found, dim=1)[None]


def plain_varlen(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch's kernel computes: causal, a part's last query sees its last key."""
    found = []
    for (q, q_end), (k, k_end) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        assert q_end - q <= max_q and k_end - k <= max_k and window_size == (-1, 0)
        mask = torch.ones(q_end - q, k_end - k, dtype=torch.bool).tril(k_end - k - (q_end - q))
        given = (states.transpose(0, 1)[None] for states in (query[q:q_end], key[k:k_end], value[k:k_end]))
        found.append(F.scaled_dot_product_attention(*given, attn_mask=mask, scale=scale, enable_gqa=enable_gqa))
    return torch.cat(found, dim=2)[0].transpose(0, 1)


@pytest.mark.parametrize("attend", [by_part, by_padding, by_varlen])
@pytest.mark.parametrize("groups", [GROUPS, [(3, [2]), (5, [4])], [(2, [])]], ids=["groups", "single", "prompt"])
def test_every_way_gives_each_part_its_prompt_and_itself(attend, groups, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", plain_varlen)
    parts = Parts(groups)
    torch.manual_seed(0)
    shapes = [(1, heads, sum(parts.lengths), 8) for heads in (4, 2, 2)]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weight = torch.randn(shapes[0], dtype=torch.float64)
    found, expected = attend(*given, parts, 0.0, None), every_part_alone(*given, parts)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients, theirs = (torch.autograd.grad((states * weight).sum(), given) for states in (found, expected))
    torch.testing.assert_close(gradients, theirs, rtol=1e-12, atol=1e-12)


def test_half_precision_on_a_gpu_takes_the_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))

    class OnGpu:
        device = torch.device("cuda", 0)

        def __init__(self, dtype, width):
            self.dtype, self.shape = dtype, (1, 2, 9, width)

    taken = {(torch.bfloat16, 64): True, (torch.float32, 64): False, (torch.float16, 60): False}
    assert {key: flat.takes_varlen(OnGpu(*key), 0.0) for key in taken} == taken
    assert not flat.takes_varlen(OnGpu(torch.bfloat16, 64), 0.1)


def test_parts_survive_the_tensor_that_a_batch_carries():
    parts = Parts(GROUPS)
    again = Parts.of(parts.as_tensor())
    assert (again.lengths, again.prompts) == (parts.lengths, parts.prompts)
    assert parts.positions_T.tolist()[:8] == [0, 1, 2, 3, 4, 5, 6, 4]


def test_attention_without_parts_is_the_librarys():
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    module = torch.nn.Module()
    both = (AttentionInterface()["sdpa"], sdpa_attention_forward)
    ours, theirs = (attend(module, query, key, key, None, scaling=0.3) for attend in both)
    assert torch.equal(ours[0], theirs[0])


def reward_model(backbone, **config):
    torch.manual_seed(0)
    return RewardModel(backbone(config["config"] if "config" in config else qwen2_config(**config)).eval())


class CountsByItself(Qwen2Model):
    """Positions that are not those it is given."""

    def forward(self, input_ids=None, position_ids=None, **given):
        return super().forward(input_ids=input_ids, **given)


class ForgetsParts(Qwen2Model):
    def forward(self, input_ids=None, position_ids=None, parts=None, **given):
        return super().forward(input_ids=input_ids, position_ids=position_ids, **given)


class TakesNoMore(Qwen2Model):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None):
        return super().forward(input_ids, attention_mask, position_ids)


MAMBA = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1}
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("backbone", "config", "said"),
    [
        (Qwen2Model, {"attn_implementation": "eager"}, "its attention is not sdpa"),
        (Qwen2Model, WINDOW, "some of its layers do not attend to the whole prompt"),
        (MambaModel, {"config": MambaConfig(**MAMBA)}, "its forward takes no position_ids"),
        (CountsByItself, {}, "in a flat row replies change one another"),
        (ForgetsParts, {}, "its layers do not hand on which parts there are"),
        (TakesNoMore, {}, "its forward takes no flat row (TypeError"),
    ],
)
def test_a_model_that_would_be_wrong_is_found_out(backbone, config, said, caplog):
    model = reward_model(backbone, **config)
    with caplog.at_level(logging.INFO, "reward.flat"):
        assert not takes_flat(model) and not takes_flat(model)
    assert len(caplog.records) == 1 and said in caplog.text


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_real_architectures_take_flat_rows_and_their_configs_say_nothing_of_it(dtype, tmp_path):
    gpt2 = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    for model in (reward_model(Qwen2Model), reward_model(GPT2Model, config=gpt2)):
        before = copy.deepcopy(model.config.to_dict())
        model.to(dtype).train()
        assert flat_problem(model.backbone, model._accepted) is None
        assert takes_flat(model) and model.training
        assert model.config.to_dict() == before and model.config._attn_implementation == "sdpa"
