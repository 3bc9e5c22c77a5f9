import pytest
from pydantic import ValidationError

from align.recipe.ppo_section import PPOConfig


def made(**changes) -> PPOConfig:
    return PPOConfig(num_iterations=100, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"policy_support": "nucleus", "rollout": {"top_p": 1.0}}, "is the whole vocabulary with top_p 1 and top_k 0"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "kl_coef: 0 cannot be adapted"),
        (
            {
                "mask_truncated_completions": True,
                "rollout": {"min_completion_length": 9, "max_completion_length": 9},
            },
            "takes every reply out: none can end",
        ),
        ({"critic_warmup_steps": 800}, "800 leaves the policy none of the 800 optimizer steps"),
        ({"ptx_coef": 0.1, "ptx_ratio": 0}, "0 gives a step no pretraining rows"),
        ({"ptx_coef": "much"}, "must be a number of at least 0, or 'auto', not 'much'"),
        ({"ptx_coef": True}, "must be a number of at least 0, or 'auto', not True"),
        ({"ptx_coef": -0.1}, "must be a number of at least 0, or 'auto', not -0.1"),
        ({"dual_clip": 1.0}, "greater than 1"),
        ({"importance_sampling_cap": 0.5}, "greater than or equal to 1"),
        ({"ema_decay": 1.0}, "less than 1"),
        ({"rollout": {"exact": True}, "micro_batch_size": 2}, "rollout.exact: computes each reply alone"),
        ({"rollout": {"exact": True}, "policy_support": "nucleus"}, "rollout.exact: is for the ratio over the whole"),
        ({"rollout": {"exact": True, "engine": "vllm_server"}}, "exact: has the trainer draw every token"),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValidationError) as caught:
        made(**changes)
    assert sentence in str(caught.value)


def test_what_can_be():
    assert made(kl_in="loss", kl_estimator="k1").kl_in == "loss"
    assert made(rollout={"exact": True}).micro_batch_size == made(rollout={"exact": True}).rows_at_once == 1
    assert made(ptx_coef="auto").uses_ptx and not made().uses_ptx and not made(ptx_coef=0).uses_ptx


def test_pretraining_rows_hold_no_more_logits_than_replies():
    rollout = {"max_prompt_length": 1024, "max_completion_length": 512}
    for micro, blocks, rows in ((8, 2048, 2), (8, 512, 8), (8, 64, 8), (2, 4096, 1), (16, 1024, 8)):
        config = made(micro_batch_size=micro, ptx_max_length=blocks, rollout=rollout)
        assert config.ptx_rows_at_once == rows
        assert rows == 1 or rows * blocks <= micro * 512
    assert made(ptx_micro_batch_size=3).ptx_rows_at_once == 3


def test_a_micro_batch_is_bounded_by_rows_or_tokens_or_both():
    rollout = {"max_prompt_length": 600, "max_completion_length": 400}
    for told, bounds in (
        ({}, (4000, 4)),
        ({"micro_batch_size": 16}, (None, 16)),
        ({"micro_batch_tokens": 3500}, (3500, 3)),
        ({"micro_batch_tokens": 900}, (900, 1)),
        ({"micro_batch_tokens": 3500, "micro_batch_size": 2}, (3500, 2)),
    ):
        config = made(**told, rollout=rollout)
        assert (config.tokens_at_once, config.rows_at_once) == bounds
    short = made(rollout={"max_prompt_length": 60, "max_completion_length": 40})
    assert (short.tokens_at_once, short.rows_at_once) == (3072, 30)
