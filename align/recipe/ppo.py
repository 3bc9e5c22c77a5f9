"""The `ppo` section. Defaults: the Qwen report where it speaks, else the marked choice of docs and README."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.recipe.cleaning import CleaningSection
from align.recipe.fields import Count, OptimSection, Positive, Section, Share, Source
from align.recipe.rewards import Rewarded


class RolloutSection(Section):
    """How the policy is sampled. `engine: auto` takes vLLM where it is usable, else HF, and says which."""

    engine: Literal["auto", "hf"] = "auto"
    num_generations: Positive = 2
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: Count = 0
    max_prompt_length: Positive = 1024
    max_completion_length: Positive = 1024
    min_completion_length: Count = 0
    batch_size: Positive = 64

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt with its longest reply."""
        return self.max_prompt_length + self.max_completion_length

    def rules(self) -> list[tuple[str, str]]:
        if self.min_completion_length > self.max_completion_length:
            sentence = f"{self.min_completion_length} is more than max_completion_length ({self.max_completion_length})"
            return [("min_completion_length", sentence)]
        return []


class PolicyOptim(OptimSection):
    learning_rate: float = Field(1e-6, gt=0)
    adam_epsilon: float = Field(1e-5, gt=0)


class CriticOptim(OptimSection):
    learning_rate: float = Field(5e-6, gt=0)
    adam_epsilon: float = Field(1e-5, gt=0)


class LookSection(Section):
    """Evaluation on held-out prompts: `num_samples` replies a prompt at temperature 1 and top-p 1, and one greedy."""

    num_samples: Count = 8
    limit: Positive | None = None


class EvalSection(LookSection):
    """The same, during training too."""

    every_steps: Positive | None = None


class PPOConfig(Section):
    """PPO with a critic: what `PPOTrainer` is told, in a recipe or in Python.

    One iteration: `rollout_batch_size` prompts over all ranks give `rollout_batch_size * num_generations` responses,
    which are trained on for `num_ppo_epochs` passes of `num_mini_batches` optimizer steps each. `micro_batch_size`
    responses are held at once by a rank. `critic_warmup_steps` counts optimizer steps.
    """

    rollout: RolloutSection = RolloutSection()
    policy: PolicyOptim = PolicyOptim()
    critic: CriticOptim = CriticOptim()
    evaluation: EvalSection = EvalSection()

    num_iterations: Positive
    rollout_batch_size: Positive = 256
    num_ppo_epochs: Positive = 1
    num_mini_batches: Positive = 8
    micro_batch_size: Positive = 8
    critic_warmup_steps: Count = 50

    kl_coef: float = Field(0.04, ge=0)
    kl_estimator: Literal["k1"] = "k1"
    kl_in: Literal["reward"] = "reward"
    normalize_reward: Literal["none", "running_mean", "running_mean_std"] = "running_mean"
    reward_clip_range: float | None = Field(10.0, gt=0)
    missing_eos_penalty: float | None = Field(1.0, ge=0)

    gamma: Share = 1.0
    lam: Share = 0.95
    whiten_advantages: bool = True
    cliprange: float = Field(0.2, gt=0)
    cliprange_value: float | None = Field(0.15, gt=0)
    vf_coef: float = Field(1.0, gt=0)

    ptx_coef: float = Field(0.0, ge=0)
    ptx_ratio: Count = 8
    ptx_max_length: Positive = 2048
    ptx_micro_batch_size: Positive | None = None

    logging_steps: Positive = 1
    save_steps: Positive | None = None
    save_total_limit: Positive = 2
    log_samples: Count = 8


class PPOSection(Rewarded, PPOConfig):
    """The ppo stage of a recipe: the configuration, the data, the reward, and what the models start from."""

    data: tuple[Source, ...] = Field(min_length=1)
    cleaning: CleaningSection | None = None
    eval_data: tuple[Source, ...] = ()
    ptx_data: tuple[Source, ...] = ()
    init_from: str | None = None
    critic_from: str | None = None

    def rules(self) -> list[tuple[str, str]]:
        broken = [*Section.rules(self), *self.reward_rules()]
        total = self.num_iterations * self.num_ppo_epochs * self.num_mini_batches
        if self.critic_warmup_steps >= total:
            sentence = (
                f"{self.critic_warmup_steps} leaves the policy none of the {total} optimizer steps (num_iterations "
                f"{self.num_iterations} x num_ppo_epochs {self.num_ppo_epochs} x num_mini_batches "
                f"{self.num_mini_batches}); use fewer, or more iterations"
            )
            broken.append(("critic_warmup_steps", sentence))
        if self.ptx_coef > 0 and not self.ptx_data:
            broken.append(
                ("ptx_data", "is empty although ptx_coef is above 0: name pretraining documents, or set ptx_coef to 0")
            )
        if self.ptx_coef > 0 and self.ptx_ratio == 0:
            sentence = "0 gives a step no pretraining rows although ptx_coef is above 0; set one of them to match"
            broken.append(("ptx_ratio", sentence))
        return broken
