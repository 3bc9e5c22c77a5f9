import pytest
from pydantic import ValidationError

from align.recipe.ppo_section import PPOConfig

ONE_STEP = {"num_ppo_epochs": 1, "num_mini_batches": 1, "critic_warmup_steps": 0}


def made(**changes) -> PPOConfig:
    return PPOConfig(num_iterations=100, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"old_logprobs": "elide"}, "here the policy has moved before 7 of 8 steps; use recompute"),
        ({"old_logprobs": "elide", **ONE_STEP}, "'elide' leaves no log-probabilities for a KL in the reward"),
        (
            {"old_logprobs": "elide", "kl_in": "loss", "guards": {"max_kl": 3.0}, **ONE_STEP},
            "too late for kl_target and the guards",
        ),
        ({"kl_in": "loss", "kl_straight_through": False}, "'k1' in the loss has a gradient of mean zero; use k2"),
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
        ({"missing_eos": "drop"}, "'none', 'replace' or 'subtract'"),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValidationError) as caught:
        made(**changes)
    assert sentence in str(caught.value)


def test_what_can_be():
    assert made(old_logprobs="elide", kl_in="loss", **ONE_STEP).old_logprobs == "elide"
    assert made(old_logprobs="elide", kl_coef=0.0, **ONE_STEP).kl_in == "reward"
    assert made(kl_in="loss", kl_estimator="k2", kl_straight_through=False).kl_estimator == "k2"
    assert made(ptx_coef="auto").uses_ptx and not made().uses_ptx and not made(ptx_coef=0).uses_ptx


def test_pretraining_rows_hold_no_more_logits_than_replies():
    rollout = {"max_prompt_length": 1024, "max_completion_length": 512}
    for micro, blocks, rows in ((8, 2048, 2), (8, 512, 8), (8, 64, 8), (2, 4096, 1), (16, 1024, 8)):
        config = made(micro_batch_size=micro, ptx_max_length=blocks, rollout=rollout)
        assert config.ptx_rows_at_once == rows
        assert rows == 1 or rows * blocks <= micro * 512
    assert made(ptx_micro_batch_size=3).ptx_rows_at_once == 3
