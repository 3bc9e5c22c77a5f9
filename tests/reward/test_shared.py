"""Replies scored with their prompt computed once, beside every reply scored alone."""

import random

import pytest
import torch

from reward.errors import ModelFileError
from reward.flat import flat_batch, flat_problem
from reward.layout import TokenGroup
from reward.model import RewardModel
from reward.pooling import POOLINGS
from reward.protocol import Sample
from reward.shared import layout_for, same_prompts
from reward.sources import ModelReward
from tests.tiny_models import byte_tokenizer, save_causal_lm


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("base"))


def make_model(base, pooling="end_token", **options):
    torch.manual_seed(1)
    model = RewardModel.from_backbone(base, **options)
    model.set_pooling(pooling)
    return model


def drawn_samples():
    """5, 2, 1, 3 and 2 replies to prompts of 1 to 9 ids, in no order; some cut off, one empty, one without ids."""
    rng = random.Random(3)
    samples = []
    for count, length in ((5, 9), (2, 1), (1, 4), (3, 6), (2, 9)):
        prompt = tuple(rng.randrange(256) for _ in range(length))
        for at in range(count):
            reply = tuple(rng.randrange(256) for _ in range(rng.randint(0 if at else 1, 8)))
            samples.append(Sample((), "", prompt_ids=prompt, completion_ids=(*reply, 258) if at % 2 else reply))
    samples.append(Sample(samples[0].prompt, "as text"))
    rng.shuffle(samples)
    return samples


class Spy(RewardModel):
    """Notes how many sequences each forward took, and in how many rows."""

    def forward(self, input_ids, *args, **kwargs):
        self.seen.append((len(kwargs.get("rows", input_ids)), len(input_ids)))
        return super().forward(input_ids, *args, **kwargs)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("attention", "share"), [("sdpa", None), ("sdpa", True), ("eager", True)])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_scores_are_those_of_every_reply_alone(base, pooling, attention, share, batch_size):
    model = make_model(base, pooling, attn_implementation=attention)
    if pooling == "attention":
        torch.nn.init.normal_(model.pooler.query)
    samples = drawn_samples()
    rows = ModelReward(model, byte_tokenizer()).token_rows(samples)
    with torch.no_grad():
        expected = [model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)).item() for row in rows]
    reward = ModelReward(model, byte_tokenizer(), batch_size, share_prompts=share)
    assert len(set(expected)) > 10
    assert reward.score(samples) == pytest.approx(expected, abs=1e-5)


def test_only_replies_with_company_share_and_false_switches_it_off(base):
    model = make_model(base)
    model.__class__, model.seen = Spy, []
    ModelReward(model, byte_tokenizer(), share_prompts=None).score(drawn_samples())
    assert model.seen == [(12, 1), (2, 2)]
    model.seen.clear()
    ModelReward(model, byte_tokenizer(), share_prompts=False).score(drawn_samples())
    assert model.seen == [(14, 14)]


def test_no_more_rows_at_once_than_asked_for(base):
    model = make_model(base)
    model.__class__, model.seen = Spy, []
    ModelReward(model, byte_tokenizer(), 4).score(drawn_samples())
    assert sum(count for count, _ in model.seen) == 14
    assert max(count for count, _ in model.seen) <= 4


def test_groups_are_split_at_the_most_and_none_is_like_no_other():
    groups, alone = same_prompts(["a", None, "a", "b", None, "a", "b", "a", "a", ()], 2)
    assert groups == [[0, 2], [5, 7], [3, 6]]
    assert alone == [8, 1, 4, 9]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_flat_row_under_autocast_and_in_bfloat16(base, dtype):
    model = make_model(base, dtype=dtype)
    rng = random.Random(0)
    groups = [TokenGroup(rng.choices(range(256), k=7), [rng.choices(range(256), k=n) for n in (3, 5)]) for _ in "ab"]
    batch = flat_batch(groups)
    del batch["starts"]
    rows = [[*group.prompt_ids, *reply] for group in groups for reply in group.reply_ids]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        shared = model(**batch)
        apart = torch.cat([model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)) for row in rows])
    assert shared.dtype == torch.float32
    torch.testing.assert_close(shared, apart, rtol=0.05, atol=0.05)
    assert model.config._attn_implementation == "sdpa"


def test_an_adapter_shares_too(base):
    from peft import LoraConfig, get_peft_model

    model = make_model(base)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = RewardModel(get_peft_model(model.backbone, config), model.head).eval()
    assert layout_for(adapted, 256, None) is flat_batch
    shared, apart = (
        ModelReward(adapted, byte_tokenizer(), share_prompts=share).score(drawn_samples()) for share in (None, False)
    )
    assert shared == pytest.approx(apart, abs=1e-5)


def test_what_cannot_be_laid_flat_is_scored_apart_or_refused(base):
    model = make_model(base, attn_implementation="eager")
    assert flat_problem(model.backbone, model._accepted) == "its attention is not sdpa"
    assert layout_for(model, 256, None) is None and layout_for(model, 256, False) is None
    batch = flat_batch([TokenGroup([1, 2], [[3, 258], [4, 258]])])
    del batch["starts"]
    with pytest.raises(ModelFileError, match="takes no flat row of several sequences: its attention is not sdpa"):
        model(**batch)
