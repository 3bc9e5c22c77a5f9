"""How far one policy is from another, beside a computation of its own in float64."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.data.encode import encode_prompts
from align.evaluation.replies import JudgedReply
from align.stages.distance import reply_kl
from data_formats.records import Message, Prompt
from tests.align.stages.small_chain import small_recipe
from tests.tiny_models import byte_tokenizer, save_causal_lm

PROMPTS = [Prompt((Message("user", text),)) for text in ("Why?", "And how is that, then?")]
REPLIES = [[(7, 8, 258), (9,)], [(10, 256, 11, 12), (258,)]]  # the pad id occurs inside


def test_the_kl_is_the_mean_difference_of_whole_replies(tmp_path):
    paths = [str(save_causal_lm(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    recipe = small_recipe(tmp_path)
    replies = [[JudgedReply("", True, len(ids), {}, ids) for ids in row] for row in REPLIES]
    asked = encode_prompts(byte_tokenizer(), [prompt.messages for prompt in PROMPTS])
    sums = []
    for path in paths:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        sums.append(0.0)
        for prompt, row in zip(asked, REPLIES, strict=True):
            for ids in row:
                logps_TV = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
                sums[-1] += sum(logps_TV[len(prompt) - 1 + at, token].item() for at, token in enumerate(ids))
    found = reply_kl(recipe, paths[0], paths[1], PROMPTS, replies, batch_size=3)
    assert found == pytest.approx((sums[1] - sums[0]) / 4, abs=1e-5) and abs(found) > 0.01
    assert reply_kl(recipe, paths[0], paths[0], PROMPTS, replies, batch_size=1) == 0
