"""Two choices of well-known papers that `PPOTrainer` does not make, as subclasses of a few lines.

    python examples/ppo_published_variants.py

The trainer subtracts `missing_eos_penalty` from the score of a reply without an end, and a KL in the loss has the
gradient of the whole reply's KL. Here the score is replaced, and the KL's estimate has its own gradient. Trained on a
reward that does not care, the policy learns to end its replies.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from align import Critic, PPOConfig, PPOTrainer
from align.functional import kl_estimate
from align.functional.clipped_losses import weighted
from align.functional.masked import keep
from align.models.load import new_causal_lm
from align.models.tokenizer import train_tokenizer
from align.recipe.model_section import Architecture
from align.trainers import Experience


class ReplacedScore(PPOTrainer):
    """A reply without an end gets minus `missing_eos_penalty`, whatever its score (Huang et al. 2023, detail 5)."""

    def penalize_scores(self, scores_N: Tensor, finished_N: Tensor, lengths_N: Tensor) -> Tensor:
        """Scores in the reward's own unit, after the penalties for a missing end and for length."""
        return super().penalize_scores(scores_N.where(finished_N, 0.0), finished_N, lengths_N)


class EstimateInLoss(PPOTrainer):
    """`beta` times an estimate of the KL in the loss, with the estimate's own gradient (k3: Shao et al. 2024, equation
    4), which sees the token at hand and not what it leads to; beside it set `kl_coef` to 0. Temperature 1 is assumed.
    """

    beta, kind = 0.04, "k3"

    def policy_loss(self, logps_BS: Tensor, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate's sum plus that of the estimates; `batch.ref_logps_NS` are the reference's."""
        loss_sum, sums = super().policy_loss(logps_BS, batch)
        mask_BS = batch.mask_NS
        estimate_BS = kl_estimate(keep(logps_BS, mask_BS), keep(batch.ref_logps_NS, mask_BS), self.kind)
        return loss_sum + self.beta * weighted(estimate_BS, batch.weights_NS, mask_BS).sum(), sums


class AsPublished(ReplacedScore, EstimateInLoss):
    """Both."""


def main(output_dir: str | Path = "runs/examples/ppo_published_variants") -> dict[str, float]:
    """Train, and return the share of replies that the policy ended itself, before and after."""
    prompts = [{"prompt": f"What is {number}?"} for number in "12345678"]
    tokenizer = train_tokenizer([prompt["prompt"] for prompt in prompts], vocab_size=262)
    shape = Architecture(hidden_size=32, intermediate_size=64, num_hidden_layers=1, max_position_embeddings=64)
    policy = new_causal_lm(shape, tokenizer, seed=0)
    rollout = {"num_generations": 4, "top_p": 1.0, "max_completion_length": 16}
    optim = {"learning_rate": 3e-3}
    told = {"num_iterations": 40, "rollout_batch_size": 8, "num_mini_batches": 2, "micro_batch_size": 16}
    told |= {"critic_warmup_steps": 4, "kl_coef": 0.0, "rollout": rollout, "policy": optim, "critic": optim}
    critic, config = Critic.from_causal_lm(policy), PPOConfig(**told)
    trainer = AsPublished(policy, critic, indifferent, tokenizer, config, prompts, output_dir=output_dir)
    before = trainer.evaluate(prompts)["eval/end_rate"]
    trainer.train()
    return {"before": before, "after": trainer.evaluate(prompts)["eval/end_rate"]}


def indifferent(prompts: list, completions: list[str]) -> list[float]:
    """The same for every reply."""
    return [1.0] * len(completions)


if __name__ == "__main__":
    print(main())
