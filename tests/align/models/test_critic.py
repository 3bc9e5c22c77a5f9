import pytest
import torch
from transformers import AutoModelForCausalLM

from align.models.critic import Critic
from reward.errors import ModelFileError
from reward.model import RewardModel
from tests.tiny_models import ragged_ids, save_causal_lm


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("base"))


def batch(side):
    rows = ragged_ids()
    width = max(map(len, rows)) + 1
    ids = [[7] * (width - len(row)) + row if side == "left" else row + [7] * (width - len(row)) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    mask = mask if side == "left" else [line[::-1] for line in mask]
    return torch.tensor(ids), torch.tensor(mask)


def with_head(critic):
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    return critic


def test_values_start_at_zero_for_every_token(base):
    values = Critic.from_causal_lm(base)(*batch("right"))
    assert values.shape == batch("right")[0].shape
    assert values.dtype == torch.float32
    assert not values.any()


def test_a_token_has_the_same_value_left_padded_right_padded_and_alone(base):
    critic = with_head(Critic.from_causal_lm(base))
    alone = [critic(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))[0] for row in ragged_ids()]
    for side in ("left", "right"):
        ids, mask = batch(side)
        for values, counts, expected in zip(critic(ids, mask), mask.bool(), alone, strict=True):
            torch.testing.assert_close(values[counts], expected, rtol=1e-5, atol=1e-5)


def test_a_value_depends_on_what_was_read_and_not_on_what_follows(base):
    critic = with_head(Critic.from_causal_lm(base))
    ids, mask = batch("right")
    changed = ids.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 256
    before, after = critic(ids, mask), critic(changed, mask)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert (before[:, 2] - after[:, 2]).abs().min() > 1e-4


def test_from_a_frozen_reward_model_it_is_a_trainable_copy_of_the_body(base):
    torch.manual_seed(0)
    reward_model = RewardModel.from_backbone(base)
    reward_model(*batch("right")).sum().backward()
    reward_model.requires_grad_(False)
    critic = Critic.from_reward_model(reward_model)
    assert not critic.head.weight.any()
    assert all(value.requires_grad and value.grad is None for value in critic.parameters())
    body = dict(reward_model.backbone.named_parameters())
    for name, value in critic.backbone.named_parameters():
        assert torch.equal(value, body[name])
        assert value.data_ptr() != body[name].data_ptr()
    assert not any(value.requires_grad for value in reward_model.parameters())


def test_from_a_module_or_a_folder_it_has_the_same_body(base):
    module = AutoModelForCausalLM.from_pretrained(base)
    from_module, from_folder = Critic.from_causal_lm(module), Critic.from_causal_lm(base)
    for (name, left), (other, right) in zip(
        from_module.state_dict().items(), from_folder.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(left, right)
    assert from_module.config.model_type == "qwen2"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_values_are_bit_equal(base, tmp_path, dtype):
    critic = with_head(Critic.from_causal_lm(base, dtype=dtype))
    critic.save_pretrained(tmp_path)
    assert torch.equal(Critic.from_pretrained(tmp_path)(*batch("left")), critic(*batch("left")))
    with pytest.raises(ModelFileError, match=r"reward_config\.json"):
        RewardModel.from_pretrained(tmp_path)


def test_head_learns_first_and_then_the_body_too(base):
    critic = Critic.from_causal_lm(base).train()
    critic(*batch("right")).sum().backward()
    assert critic.head.weight.grad.abs().sum() > 0
    with_head(critic)
    critic.zero_grad()
    critic(*batch("right")).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in critic.parameters())
