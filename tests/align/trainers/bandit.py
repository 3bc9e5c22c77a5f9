"""PPO on the closed replies of `bandit_optima`: the real trainer and engine, and a tiny Qwen2 whose logits are masked.

`python -m tests.align.trainers.bandit [VARIANT …]` trains and prints a table.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM

from align.data.encode import encode_prompts
from align.models.critic import Critic
from align.recipe.ppo_section import PPOConfig
from align.trainers.ppo import PPOTrainer
from data_formats.records import Message, Prompt
from examples.ppo_published_variants import EstimateInLoss
from reward.sources import FunctionReward
from tests.align.trainers.bandit_optima import (
    BETAS,
    REPLIES,
    REWARDS,
    myopic,
    myopic_forward,
    optimum,
    table,
    total_variation,
)
from tests.tiny_models import byte_tokenizer, qwen2_config

TOKENIZER = byte_tokenizer()
END = 258
PROMPT = Prompt((Message("user", "?"),), "bandit")


def close(model: nn.Module) -> nn.Module:
    """Leave the model only `REPLIES`: what may follow depends on the last token alone (`a` is always a first letter).

    The mask is finite, so that differences of masked log-probabilities in the padding are numbers.
    """
    mask_VV = torch.zeros(model.config.vocab_size, model.config.vocab_size)
    for tokens, allowed in (("\n", _ids("abc")), ("abc", _ids("xyz")), ("x", _ids("uv")), ("yzuv", [END])):
        for token in _ids(tokens):
            mask_VV[token] = -1e4
            mask_VV[token, allowed] = 0.0

    def add_mask(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        kept = kwargs.get("logits_to_keep", 0)
        columns = slice(-kept, None) if isinstance(kept, int) else kept
        output.logits = output.logits + mask_VV[kwargs["input_ids"][:, columns]]
        return output

    model.register_forward_hook(add_mask, with_kwargs=True)
    model.lm_head.__class__ = OwnHead
    return model


class OwnHead(nn.Linear):
    """Not known to be linear: it is asked for its logits, which the hook changes."""

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states)


def _ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


@cache
def _every_reply() -> tuple[Tensor, Tensor]:
    """(ids_RT, counts_RT): the prompt with each reply, and which tokens are the reply's own, `<|im_end|>` included."""
    (prompt,) = encode_prompts(TOKENIZER, [PROMPT.messages], [None])
    replies = [[*_ids(reply), END] for reply in REPLIES]
    width = len(prompt) + max(map(len, replies))
    ids_RT = torch.full((len(replies), width), END)  # nothing sees the padding on the right
    counts_RT = torch.zeros(ids_RT.shape, dtype=torch.bool)
    for row, reply in enumerate(replies):
        ids_RT[row, : len(prompt) + len(reply)] = torch.tensor([*prompt, *reply])
        counts_RT[row, len(prompt) : len(prompt) + len(reply)] = True
    return ids_RT, counts_RT


def log_distribution(model: nn.Module) -> Tensor:
    """Log-probability of each of `REPLIES`; (R,), float64, with gradient."""
    ids_RT, counts_RT = _every_reply()
    logps_RTV = model(input_ids=ids_RT, use_cache=False).logits[:, :-1].double().log_softmax(-1)
    logps_RS = logps_RTV.gather(-1, ids_RT[:, 1:, None])[..., 0]
    return torch.where(counts_RT[:, 1:], logps_RS, 0.0).sum(-1)


@torch.no_grad()
def distribution(model: nn.Module) -> Tensor:
    """Probability of each of `REPLIES`; they sum to 1, as nothing else can be said."""
    return log_distribution(model).exp()


def reference_model(seed: int) -> nn.Module:
    """A closed Qwen2 of width 32 that has learned `table()`."""
    torch.manual_seed(seed)
    model = close(Qwen2ForCausalLM(qwen2_config(hidden_size=32, num_hidden_layers=1, initializer_range=0.1)).eval())
    optimizer, target_R = torch.optim.Adam(model.parameters(), lr=1e-2), table()
    for _ in range(150):
        optimizer.zero_grad()
        (-(target_R * log_distribution(model)).sum()).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


def config(beta: float, **changes) -> PPOConfig:
    """Nothing scales the reward, neither running statistics nor whitening: they would weigh a KL in the loss against
    rewards of another unit, and the optimum would be that of another beta."""
    generations = changes.pop("num_generations", 256)
    critic = {"learning_rate": 1e-2, "lr_scheduler_type": "linear"}
    with_critic = {"critic_warmup_steps": 5, "critic": critic} if changes.get("advantage", "gae") == "gae" else {}
    rollout = {"engine": "hf", "top_p": 1.0, "max_completion_length": 4}
    values = {
        "num_iterations": 150,
        "rollout_batch_size": 1,
        "num_mini_batches": 1,
        "micro_batch_size": generations,
        "rollout": rollout | {"num_generations": generations, "batch_size": generations},
        "policy": {"learning_rate": 3e-3, "lr_scheduler_type": "linear"},
        "kl_coef": beta,
        "normalize_reward": "none",
        "reward_clip_range": None,
        "whiten_advantages": False,
        "log_samples": 0,
        "guards": {"warn_equal_rewards": False},
    }
    return PPOConfig(**(values | with_critic | changes))


def train(
    folder: Path, beta: float, seed: int = 0, own_gradient: str | None = None, **changes
) -> tuple[Tensor, Tensor]:
    """(reference_R, trained_R): what `PPOTrainer` started from and where it came to; with `own_gradient` its subclass
    whose loss holds that estimator itself."""
    reference, kind = reference_model(seed), PPOTrainer
    if own_gradient is not None:
        kind = type("OwnGradient", (EstimateInLoss,), {"beta": beta, "kind": own_gradient})
        changes["kl_coef"] = 0.0
    told = config(beta, **changes)
    trainer = kind(
        reference,
        Critic.from_causal_lm(reference) if told.estimator.critic else None,
        FunctionReward(lambda prompts, completions: [REWARDS[reply] for reply in completions], "table"),
        TOKENIZER,
        told,
        [PROMPT],
        output_dir=folder,
        seed=seed,
    )
    start_R = distribution(reference)
    trainer.train()
    return start_R, distribution(trainer.policy.raw)


# What the KL penalty is made of, and where that comes to rest (None: nowhere).
VARIANTS: dict[str, tuple[dict[str, Any], Callable[[Tensor, float], Tensor] | None]] = {
    "k1 in the reward": ({}, optimum),
    "in the loss, straight-through": ({"kl_in": "loss"}, optimum),  # whichever estimator
    "k2 in the loss, own gradient": ({"own_gradient": "k2"}, myopic),
    "k3 in the loss, own gradient": ({"own_gradient": "k3"}, myopic_forward),
    "k3 in the reward": ({"kl_estimator": "k3"}, None),
    "k2 in the reward": ({"kl_estimator": "k2"}, None),
}


def main(chosen: Sequence[str], betas: Sequence[float] = BETAS, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Print a line a variant and beta: total variation to the optimum before and after, and to the variant's own fixed
    point; mean, smallest and largest over the seeds."""
    print(f"{'variant':30} beta  start                end                  to its fixed point")
    for name in chosen or VARIANTS:
        changes, fixed_point = VARIANTS[name]
        for beta in betas:
            starts, ends, rests = [], [], []
            for seed in seeds:
                with tempfile.TemporaryDirectory() as folder:
                    reference_R, trained_R = train(Path(folder), beta, seed, **changes)
                starts.append(total_variation(reference_R, optimum(reference_R, beta)))
                ends.append(total_variation(trained_R, optimum(reference_R, beta)))
                if fixed_point is not None:
                    rests.append(total_variation(trained_R, fixed_point(reference_R, beta)))
            figures = (
                f"{fmean(of):.3f} ({min(of):.3f}-{max(of):.3f})" if of else "none" for of in (starts, ends, rests)
            )
            print(f"{name:30} {beta:<4}", *figures, sep="  ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
